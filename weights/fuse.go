package weights

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
)

// Fuse is the inverse of [Unfuse]: the linear layers of experts become fused matrices
// again, each at the place of its first layer. It fails with fault.Input when an expert
// lacks a layer, shapes differ, or a matrix is there in both forms.
func Fuse(s *Set) (*Set, error) {
	made, err := s.fuseAll()
	if err != nil {
		return nil, err
	}
	out := &Set{byName: map[string]int{}, scheme: s.scheme}
	for _, t := range s.tensors {
		_, rest, _ := strings.Cut(t.Name(), ".experts.")
		if _, _, ok := expertLayer(rest); ok {
			f, first := made[t.Name()]
			if !first {
				continue
			}
			t = f
		}
		if err := out.add(t); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fusedLeaves are the fused matrices of a group of experts and the layers they hold.
var fusedLeaves = []struct {
	name   string
	leaves []string
}{
	{"gate_up_proj", []string{"gate_proj", "up_proj"}}, {"down_proj", []string{"down_proj"}},
}

// expertLayer splits what follows ".experts." in the name of a layer that Unfuse makes:
// "7.up_proj.weight".
func expertLayer(rest string) (number, leaf string, ok bool) {
	number, leaf, _ = strings.Cut(rest, ".")
	leaf, ok = strings.CutSuffix(leaf, ".weight")
	return number, leaf, ok && number != "" && strings.Trim(number, "0123456789") == "" && slices.Contains([]string{"gate_proj", "up_proj", "down_proj"}, leaf)
}

// fuseAll makes the fused matrices, by the names of their first layers. Every layer of
// every expert goes into one.
func (s *Set) fuseAll() (map[string]Tensor, error) {
	type group struct {
		experts int
		leaves  map[string]bool
	}
	groups := map[string]*group{}
	var order []string
	for _, t := range s.tensors {
		prefix, rest, _ := strings.Cut(t.Name(), ".experts.")
		number, leaf, ok := expertLayer(rest)
		if !ok {
			continue
		}
		e, err := strconv.Atoi(number)
		if err != nil || strconv.Itoa(e) != number || e >= len(s.tensors) {
			return nil, refuse(t.Sources()[0], "expected the number of an expert, found %q", number)
		}
		g := groups[prefix]
		if g == nil {
			g = &group{leaves: map[string]bool{}}
			groups[prefix], order = g, append(order, prefix)
		}
		g.experts, g.leaves[leaf] = max(g.experts, e+1), true
	}
	made := map[string]Tensor{}
	for _, prefix := range order {
		for _, fl := range fusedLeaves {
			if !slices.ContainsFunc(fl.leaves, func(l string) bool { return groups[prefix].leaves[l] }) {
				continue
			}
			f, err := s.fuse(prefix+".experts."+fl.name, prefix, fl.leaves, groups[prefix].experts)
			if err != nil {
				return nil, err
			}
			made[f.parts[0].Name()] = f
		}
	}
	return made, nil
}

// fuse gathers the layers of one fused matrix.
func (s *Set) fuse(name, prefix string, leaves []string, experts int) (*fusedExperts, error) {
	f := &fusedExperts{name: name, perExpert: len(leaves)}
	for e := range experts {
		for _, leaf := range leaves {
			n := fmt.Sprintf("%s.experts.%d.%s.weight", prefix, e, leaf)
			t, ok := s.Lookup(n)
			if !ok {
				return nil, fault.Inputf("reading tensor %q: it is missing, though layers of experts up to number %d are there", n, experts-1)
			}
			if len(f.parts) == 0 {
				f.layer = t.Shape()
				if len(f.layer) != 2 {
					return nil, refuse(t.Sources()[0], "shape is %v; expected a matrix", f.layer)
				}
			}
			if !slices.Equal(t.Shape(), f.layer) {
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

// Format is F32 where parts differ.
func (f *fusedExperts) Format() kernels.Float {
	out := f.parts[0].Format()
	for _, p := range f.parts {
		if p.Format() != out {
			return kernels.F32
		}
	}
	return out
}

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
