package weights

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// Fuse is the inverse of [Unfuse]: the linear layers of experts become fused matrices
// again. It fails with fault.Input when an expert lacks a layer or shapes differ.
func Fuse(s *Set) (*Set, error) {
	out := &Set{byName: map[string]int{}, scheme: s.scheme}
	for _, t := range s.tensors {
		var name string
		var leaves []string
		prefix, rest, _ := strings.Cut(t.Name(), ".experts.")
		switch rest {
		case "0.gate_proj.weight":
			name, leaves = prefix+".experts.gate_up_proj", []string{"gate_proj", "up_proj"}
		case "0.down_proj.weight":
			name, leaves = prefix+".experts.down_proj", []string{"down_proj"}
		}
		if leaves != nil {
			f, err := s.fuse(name, prefix, leaves)
			if err != nil {
				return nil, err
			}
			t = f
		} else if isExpertLayer(rest) {
			continue // part of a matrix that stands at the place of its first layer
		}
		out.byName[t.Name()] = len(out.tensors)
		out.tensors = append(out.tensors, t)
	}
	return out, nil
}

// isExpertLayer tells whether what follows ".experts." names a layer that Unfuse makes.
func isExpertLayer(rest string) bool {
	number, leaf, _ := strings.Cut(rest, ".")
	return number != "" && strings.Trim(number, "0123456789") == "" &&
		slices.Contains([]string{"gate_proj.weight", "up_proj.weight", "down_proj.weight"}, leaf)
}

// fuse gathers the layers of one fused matrix.
func (s *Set) fuse(name, prefix string, leaves []string) (*fusedExperts, error) {
	f := &fusedExperts{name: name, perExpert: len(leaves)}
	for e := 0; ; e++ {
		if _, ok := s.Lookup(fmt.Sprintf("%s.experts.%d.%s.weight", prefix, e, leaves[0])); !ok {
			break
		}
		for _, leaf := range leaves {
			n := fmt.Sprintf("%s.experts.%d.%s.weight", prefix, e, leaf)
			t, ok := s.Lookup(n)
			if !ok {
				return nil, fault.Inputf("reading tensor %q: it is missing, %q is there", n, f.parts[len(f.parts)-1].Name())
			}
			if len(f.parts) == 0 {
				f.layer = t.Shape()
			}
			if !slices.Equal(t.Shape(), f.layer) || len(f.layer) != 2 {
				return nil, refuse(t.Sources()[0], "shape is %v; expected a matrix of the same shape %v as %q", t.Shape(), f.layer, f.parts[0].Name())
			}
			f.parts = append(f.parts, t)
		}
	}
	return f, nil
}

// fusedExperts is the matrix [E, in, perExpert*out] of layers [out, in].
type fusedExperts struct {
	name      string
	parts     []Tensor // expert by expert, its layers in the order of their columns
	perExpert int
	layer     []int64 // shape of each part
}

func (f *fusedExperts) Name() string { return f.name }
func (f *fusedExperts) Shape() []int64 {
	return []int64{int64(len(f.parts) / f.perExpert), f.layer[1], int64(f.perExpert) * f.layer[0]}
}
func (f *fusedExperts) Storage() string { return "unfused " + f.parts[0].Storage() }

func (f *fusedExperts) Sources() []hf.Tensor {
	var out []hf.Tensor
	for _, p := range f.parts {
		out = append(out, p.Sources()...)
	}
	return out
}

// ReadF32 reads, of every column, the run of rows that the range touches, and keeps what
// belongs to the range.
func (f *fusedExperts) ReadF32(dst []float32, off int64) error {
	width := int64(f.perExpert) * f.layer[0]
	expert := f.layer[1] * width
	for len(dst) > 0 {
		e, at := off/expert, off%expert
		n := min(int64(len(dst)), expert-at)
		if err := f.readExpert(dst[:n], e, at, width); err != nil {
			return err
		}
		dst, off = dst[n:], off+n
	}
	return nil
}

func (f *fusedExperts) readExpert(dst []float32, e, at, width int64) error {
	last := at + int64(len(dst)) - 1
	r0, r1 := at/width, last/width+1
	rows := make([]float32, r1-r0)
	for c := range width {
		part := f.parts[e*int64(f.perExpert)+c/f.layer[0]]
		if err := part.ReadF32(rows, c%f.layer[0]*f.layer[1]+r0); err != nil {
			return err
		}
		for r := r0; r < r1; r++ {
			if k := r*width + c; k >= at && k <= last {
				dst[k-at] = rows[r-r0]
			}
		}
	}
	return nil
}
