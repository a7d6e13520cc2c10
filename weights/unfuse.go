package weights

import (
	"fmt"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels"
)

// Unfuse replaces fused expert matrices by one linear layer per expert:
//
//	P.experts.gate_up_proj [E, in, 2*inner] -> P.experts.N.gate_proj.weight [inner, in]
//	                                           P.experts.N.up_proj.weight   [inner, in]
//	P.experts.down_proj    [E, inner, out]  -> P.experts.N.down_proj.weight [out, inner]
//
// Sets without such tensors are returned as they are. It fails with fault.Input when an
// expert is there in both forms.
func Unfuse(s *Set) (*Set, error) {
	out := &Set{byName: map[string]int{}, scheme: s.scheme}
	for _, t := range s.tensors {
		parts := unfuse(t)
		if parts == nil {
			parts = []Tensor{t}
		}
		for _, p := range parts {
			if err := out.add(p); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func unfuse(t Tensor) []Tensor {
	shape := t.Shape()
	prefix, leaf, ok := strings.Cut(t.Name(), ".experts.")
	if !ok || len(shape) != 3 {
		return nil
	}
	var names []string
	switch {
	case leaf == "gate_up_proj" && shape[2]%2 == 0:
		names = []string{"gate_proj", "up_proj"}
	case leaf == "down_proj":
		names = []string{"down_proj"}
	default:
		return nil
	}
	var out []Tensor
	width := shape[2] / int64(len(names))
	for e := range shape[0] {
		for k, n := range names {
			out = append(out, &expertPart{
				fused: t, name: fmt.Sprintf("%s.experts.%d.%s.weight", prefix, e, n),
				first: e*shape[1]*shape[2] + int64(k)*width, in: shape[1], stride: shape[2], out: width,
			})
		}
	}
	return out
}

// expertPart is a run of columns of one expert's matrix, transposed.
type expertPart struct {
	fused  Tensor
	name   string
	first  int64 // flat index in the fused tensor of its element [0, 0]
	in     int64 // rows of the fused matrix: the features that go in
	stride int64 // elements from one row to the next
	out    int64 // columns that belong to this part
}

func (p *expertPart) Name() string          { return p.name }
func (p *expertPart) Shape() []int64        { return []int64{p.out, p.in} }
func (p *expertPart) Storage() string       { return "fused " + p.fused.Storage() }
func (p *expertPart) Format() kernels.Float { return p.fused.Format() }
func (p *expertPart) Sources() []hf.Tensor  { return p.fused.Sources() }

// ReadF32 reads a strip of a few columns of every row.
func (p *expertPart) ReadF32(dst []float32, off int64) error {
	if len(dst) == 0 {
		return nil
	}
	last := off + int64(len(dst)) - 1
	c0, c1 := off/p.in, last/p.in+1
	strip := make([]float32, c1-c0)
	for r := range p.in {
		if err := p.fused.ReadF32(strip, p.first+r*p.stride+c0); err != nil {
			return err
		}
		for c := c0; c < c1; c++ {
			if at := c*p.in + r; at >= off && at <= last {
				dst[at-off] = strip[c-c0]
			}
		}
	}
	return nil
}
