package weights_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/weights"
)

// numbered is a BF16 tensor of consecutive small integers from first on.
func numbered(name string, first int, shape ...int64) formatstest.Tensor {
	v := make([]float32, elems(shape))
	for i := range v {
		v[i] = float32((first + i) % 251)
	}
	return formatstest.Tensor{Name: name, DType: "BF16", Shape: shape, Data: brain(v...)}
}

func unfuse(t *testing.T, s *weights.Set) *weights.Set {
	t.Helper()
	u, err := weights.Unfuse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Experts are the columns of the fused matrices, transposed: the gate's are the first
// half. Every element is looked up by the definition, whole and in pieces.
func TestUnfuse(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, d := range [][3]int64{{1, 1, 1}, {3, 5, 2}, {2, 4, 7}, {4, 16, 8}} {
		E, in, inner := d[0], d[1], d[2]
		s := mustOpen(t, "", numbered("a.norm.weight", 1, in),
			numbered("l.experts.gate_up_proj", 2, E, in, 2*inner), numbered("l.experts.down_proj", 3, E, inner, in))
		u := unfuse(t, s)
		if len(u.Tensors()) != int(1+3*E) || u.Scheme() != s.Scheme() {
			t.Fatalf("%d tensors of scheme %q", len(u.Tensors()), u.Scheme())
		}
		up, down := read(t, lookup(t, s, "l.experts.gate_up_proj")), read(t, lookup(t, s, "l.experts.down_proj"))
		for e := range E {
			for leaf, at := range map[string]func(o, i int64) float32{
				"gate_proj": func(o, i int64) float32 { return up[(e*in+i)*2*inner+o] },
				"up_proj":   func(o, i int64) float32 { return up[(e*in+i)*2*inner+inner+o] },
				"down_proj": func(o, i int64) float32 { return down[(e*inner+i)*in+o] },
			} {
				x := lookup(t, u, fmt.Sprintf("l.experts.%d.%s.weight", e, leaf))
				rows, cols := inner, in
				if leaf == "down_proj" {
					rows, cols = in, inner
				}
				if !slices.Equal(x.Shape(), []int64{rows, cols}) || !strings.HasPrefix(x.Storage(), "fused ") {
					t.Fatalf("%s: %s %v, want [%d %d]", x.Name(), x.Storage(), x.Shape(), rows, cols)
				}
				var want []float32
				for o := range rows {
					for i := range cols {
						want = append(want, at(o, i))
					}
				}
				same(t, x.Name(), read(t, x), want)
				ranges(t, x, want, r)
			}
		}
	}
}

func TestUnfuseLeavesTheRest(t *testing.T) {
	s := mustOpen(t, "", numbered("l.experts.gate_up_proj", 0, 2, 3, 5), numbered("l.experts.down_proj", 0, 3, 5), numbered("l.experts.gate_up_proj_bias", 0, 2, 6),
		numbered("gate_up_proj", 0, 2, 3, 4), numbered("l.experts.0.down_proj.weight", 0, 3, 4))
	u := unfuse(t, s)
	if len(u.Tensors()) != len(s.Tensors()) {
		t.Fatalf("%d tensors became %d", len(s.Tensors()), len(u.Tensors()))
	}
	for i, x := range s.Tensors() {
		if u.Tensors()[i] != x {
			t.Errorf("%s was changed or moved", x.Name())
		}
	}
}

// Fuse is the inverse of Unfuse, value by value.
func TestFuseOfUnfuse(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, d := range [][3]int64{{1, 1, 1}, {3, 5, 2}, {12, 4, 7}} { // twelve: 10 sorts before 2
		E, in, inner := d[0], d[1], d[2]
		s := mustOpen(t, "", numbered("a.weight", 1, in), numbered("l.experts.gate_up_proj", 2, E, in, 2*inner),
			numbered("l.experts.down_proj", 3, E, inner, in), numbered("m.experts.down_proj", 4, E, inner, in), numbered("m.experts.gate_up_proj", 5, E, in, 2*inner))
		f, err := weights.Fuse(unfuse(t, s))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Tensors()) != len(s.Tensors()) {
			t.Fatalf("%d tensors, want %d", len(f.Tensors()), len(s.Tensors()))
		}
		for _, x := range s.Tensors() {
			y := lookup(t, f, x.Name())
			if !slices.Equal(x.Shape(), y.Shape()) {
				t.Fatalf("%s: shape %v, want %v", x.Name(), y.Shape(), x.Shape())
			}
			whole := read(t, x)
			same(t, x.Name(), read(t, y), whole)
			ranges(t, y, whole, r)
		}
	}
}

// experts are the layers of n experts with 4 features in and 3 inside.
func experts(n int) []formatstest.Tensor {
	var ts []formatstest.Tensor
	for e := range n {
		p := fmt.Sprintf("l.experts.%d.", e)
		ts = append(ts, numbered(p+"gate_proj.weight", e, 3, 4), numbered(p+"up_proj.weight", e, 3, 4), numbered(p+"down_proj.weight", e, 4, 3))
	}
	return ts
}

// A layer that would belong to no fused matrix is refused: leaving it out would lose it.
func TestFuseRefuses(t *testing.T) {
	without := func(names ...string) func([]formatstest.Tensor) []formatstest.Tensor {
		return func(ts []formatstest.Tensor) []formatstest.Tensor {
			n := len(ts)
			ts = slices.DeleteFunc(ts, func(x formatstest.Tensor) bool {
				return slices.Contains(names, strings.TrimPrefix(x.Name, "l.experts."))
			})
			if len(ts) != n-len(names) {
				t.Fatalf("not all of %q are there", names)
			}
			return ts
		}
	}
	for name, c := range map[string]struct {
		change func([]formatstest.Tensor) []formatstest.Tensor
		want   []string
	}{
		"no up":             {without("2.up_proj.weight"), []string{"l.experts.2.up_proj.weight", "missing"}},
		"no gate":           {without("1.gate_proj.weight"), []string{"l.experts.1.gate_proj.weight", "missing"}},
		"no down":           {without("3.down_proj.weight"), []string{"l.experts.3.down_proj.weight", "missing"}},
		"no gate of 0":      {without("0.gate_proj.weight"), []string{"l.experts.0.gate_proj.weight", "missing"}},
		"no expert 0":       {without("0.gate_proj.weight", "0.up_proj.weight", "0.down_proj.weight"), []string{"l.experts.0.", "missing"}},
		"no expert 2":       {without("2.gate_proj.weight", "2.up_proj.weight", "2.down_proj.weight"), []string{"l.experts.2.", "missing"}},
		"only down of last": {without("3.gate_proj.weight", "3.up_proj.weight"), []string{"l.experts.3.gate_proj.weight", "missing"}},
		"other shape": {func(ts []formatstest.Tensor) []formatstest.Tensor {
			ts[4] = numbered(ts[4].Name, 0, 4, 3)
			return ts
		}, []string{"l.experts.1.up_proj.weight", "[4 3]", "[3 4]"}},
		"no matrix": {func(ts []formatstest.Tensor) []formatstest.Tensor {
			for i := range ts {
				ts[i].Shape = []int64{12}
			}
			return ts
		}, []string{"l.experts.0.gate_proj.weight", "expected a matrix"}},
		"leading zero": {func(ts []formatstest.Tensor) []formatstest.Tensor {
			return append(ts, numbered("l.experts.04.down_proj.weight", 0, 4, 3))
		}, []string{"l.experts.04.down_proj.weight"}},
		"fused too": {func(ts []formatstest.Tensor) []formatstest.Tensor {
			return append(ts, numbered("l.experts.down_proj", 0, 4, 3, 4))
		}, []string{"l.experts.down_proj", "twice"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustOpen(t, "", c.change(experts(4))...)
			f, err := weights.Fuse(s)
			if err == nil {
				t.Fatalf("accepted: %d tensors became %d", len(s.Tensors()), len(f.Tensors()))
			}
			if fault.ClassOf(err) != fault.Input {
				t.Errorf("class %v of %v, want input", fault.ClassOf(err), err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the message lacks %q: %v", w, err)
				}
			}
		})
	}
}

// What only looks like an expert stays.
func TestFuseLeavesTheRest(t *testing.T) {
	s := mustOpen(t, "", numbered("l.experts.router.weight", 0, 2, 2), numbered("l.experts.0.gate_proj.bias", 0, 2), numbered("l.experts.x.down_proj.weight", 0, 2, 2),
		numbered("l.shared_expert.down_proj.weight", 0, 2, 2))
	f, err := weights.Fuse(s)
	if err != nil || len(f.Tensors()) != 4 {
		t.Errorf("%d tensors, %v; want the 4 there were", len(f.Tensors()), err)
	}
}

// An expert in both forms would be written twice under one name.
func TestUnfuseRefusesTwoForms(t *testing.T) {
	s := mustOpen(t, "", append(experts(1), numbered("l.experts.gate_up_proj", 0, 2, 4, 6))...)
	_, err := weights.Unfuse(s)
	if fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), `"l.experts.0.gate_proj.weight" is there twice`) {
		t.Errorf("error %v, want class input and the tensor's name", err)
	}
}
