package convert

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// golden is what expected.json says of an adapter.
type golden struct {
	Base        string
	Refuse      string
	Changed     []string
	SafeDiffers int `json:"elements_where_safe_merge_differs"`
	Preserving  *struct {
		Tie bool `json:"tie_word_embeddings"`
	}
}

// goldenAdapters are the adapters that PEFT wrote and merged, with what it made of them.
func goldenAdapters(t *testing.T) map[string]golden {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(fixtures.Dir(t), "adapters", "*", "expected.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no adapters among the fixtures: %v", err)
	}
	out := map[string]golden{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(b, &g); err != nil {
			t.Fatal(err)
		}
		out[filepath.Dir(f)] = g
	}
	return out
}

func openAdapter(tb testing.TB, dir string) *peft.Adapter {
	tb.Helper()
	a, err := peft.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close() })
	return a
}

// merged merges adapters of weight 1 and returns the output.
func merged(tb testing.TB, base string, change func(*MergeOptions), adapters ...string) *hf.Checkpoint {
	tb.Helper()
	p := mustMerge(tb, base, change, adapters...)
	return openSource(tb, mustRun(tb, p, RunOptions{}))
}

func mustMerge(tb testing.TB, base string, change func(*MergeOptions), adapters ...string) *Plan {
	tb.Helper()
	o := DefaultMerge()
	for _, a := range adapters {
		o.Adapters = append(o.Adapters, MergeAdapter{Adapter: openAdapter(tb, a), Weight: 1})
	}
	if change != nil {
		change(&o)
	}
	p, err := Merge(openSource(tb, base), o)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func peftSafe(o *MergeOptions) { o.Rounding = RoundPEFTSafe }

// twice tells of a tensor that PEFT rounds twice whatever it is asked for: embeddings with
// factors, and experts.
func twice(p *Plan, name string) bool {
	for i := range p.Jobs {
		if j := &p.Jobs[i]; j.Name == name {
			for _, s := range j.Steps {
				for _, x := range s.Terms {
					return x.Layout == layoutExperts || j.Role == "embedding"
				}
			}
		}
	}
	return false
}

// Every adapter that PEFT merges gives PEFT's bits in the stored dtype: one rounding is its
// merge_and_unload, peft-safe its safe_merge=True. Sums that PEFT takes in another order
// may round single elements to the neighbour: less than one in a thousand. Of a tied matrix
// the pair that keeps the adapted model's function is wanted, not what PEFT makes of it.
// What is not in the list of changed tensors has the base's bytes.
func TestMergeIsPEFTs(t *testing.T) {
	for dir, g := range goldenAdapters(t) {
		name := filepath.Base(dir)
		if g.Refuse != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			base := filepath.Join(fixtures.Dir(t), g.Base)
			src := openSource(t, base)
			for _, mode := range []string{RoundOnce, RoundPEFTSafe} {
				p := mustMerge(t, base, func(o *MergeOptions) { o.Rounding = mode }, dir)
				got := openSource(t, mustRun(t, p, RunOptions{}))
				stored := expected(t, dir, "stored")
				want, compared := map[string]hf.Tensor{}, 0
				if mode == RoundOnce {
					for n, x := range stored {
						if !twice(p, n) {
							want[n] = x
						}
					}
					for n, x := range expected(t, dir, "preserving") {
						want[n] = x
					}
				} else {
					for n, x := range stored {
						// Biases and DoRA are rounded once in either mode.
						if twice(p, n) || g.SafeDiffers == 0 || strings.HasSuffix(n, ".bias") {
							want[n] = x
						}
					}
					for n, x := range expected(t, dir, "stored_safe") {
						want[n] = x
					}
				}
				if g.Preserving != nil && mode == RoundPEFTSafe {
					continue // PEFT's result is another model
				}
				for n, x := range want {
					y, ok := got.Lookup(n)
					if !ok {
						t.Fatalf("%s: %q is not in the output", mode, n)
					}
					compareULP(t, mode+": "+n, y, x, baseOf(src, n), 0.001)
					compared++
				}
				if compared == 0 && mode == RoundOnce {
					t.Fatalf("%s: nothing was compared", mode)
				}
				untouched(t, src, got, g, stored)
				tied, _ := got.Config().Get("tie_word_embeddings")
				if g.Preserving != nil && tied != g.Preserving.Tie {
					t.Errorf("%s: tie_word_embeddings is %v, want %v", mode, tied, g.Preserving.Tie)
				}
			}
		})
	}
}

// untouched holds what PEFT did not change to the base's bytes.
func untouched(t *testing.T, src, got *hf.Checkpoint, g golden, stored map[string]hf.Tensor) {
	t.Helper()
	for _, x := range src.Tensors() {
		y, ok := got.Lookup(x.Name)
		if !ok {
			t.Errorf("%q is not in the output", x.Name)
			continue
		}
		if _, changed := stored[x.Name]; changed || slices.Contains(g.Changed, x.Name) || g.Preserving != nil {
			continue
		}
		if a, b := contents(t, x), contents(t, y); string(a) != string(b) || x.DType != y.DType {
			t.Errorf("%q is not the base's", x.Name)
		}
	}
}

// With the base in float32 the sums of all adapters agree to their summation order.
func TestMergeInFloat32(t *testing.T) {
	for dir, g := range goldenAdapters(t) {
		want := expected(t, dir, "fp32")
		if g.Refuse != "" || len(want) == 0 || g.Preserving != nil {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			base := upcast(t, filepath.Join(fixtures.Dir(t), g.Base))
			src := openSource(t, base)
			got := merged(t, base, nil, dir)
			for n, x := range want {
				y, ok := got.Lookup(n)
				if !ok {
					t.Fatalf("%q is not in the output", n)
				}
				a, b, w := floats(t, y), floats(t, x), floats(t, baseOf(src, n))
				for i := range b {
					if d := math.Abs(float64(a[i] - b[i])); d > 4e-6*(math.Abs(float64(w[i]))+math.Abs(float64(b[i]))) {
						t.Fatalf("%q: element %d is %v, PEFT has %v", n, i, a[i], b[i])
					}
				}
			}
		})
	}
}

// A half-precision adapter that PEFT keeps in half precision rounds the delta to that
// first: with a base of the same dtype this is peft-safe.
func TestMergeOfHalfAdapter(t *testing.T) {
	dir := filepath.Join(fixtures.Dir(t), "adapters", "half-bf16")
	got := merged(t, filepath.Join(fixtures.Dir(t), "models", "kjv-llama"), peftSafe, dir)
	for n, x := range expected(t, dir, "halfadapter") {
		y, _ := got.Lookup(n)
		compareULP(t, n, y, x, hf.Tensor{}, 0.001)
	}
}

// Adapters that are not an addition to their base are refused before anything is written.
func TestMergeRefusesGoldenAdapters(t *testing.T) {
	n := 0
	for dir, g := range goldenAdapters(t) {
		if g.Refuse == "" {
			continue
		}
		n++
		a, err := peft.Open(dir)
		if err == nil {
			a.Close()
			t.Errorf("%s was opened", dir)
			continue
		}
		if fault.ClassOf(err) != fault.Input || len(fault.Hints(err)) == 0 {
			t.Errorf("%s: error %v of class %v with hints %q, want input and a hint", dir, err, fault.ClassOf(err), fault.Hints(err))
		}
	}
	if n < 4 {
		t.Errorf("only %d adapters are to be refused", n)
	}
}

// compareULP holds tensors of one dtype together, bit for bit but for a share of elements
// that are one unit in the last place off, or within the error of a float32 sum.
func compareULP(t *testing.T, what string, got, want, base hf.Tensor, share float64) {
	t.Helper()
	if got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) {
		t.Fatalf("%s: %s %v, want %s %v", what, got.DType, got.Shape, want.DType, want.Shape)
	}
	a, b := contents(t, got), contents(t, want)
	if string(a) == string(b) {
		return
	}
	size := 2
	if want.DType == "F32" {
		size = 4
	}
	va, vb := floats(t, got), floats(t, want)
	w := make([]float32, len(vb))
	if base.Tensor != nil && slices.Equal(base.Shape, want.Shape) {
		w = floats(t, base)
	}
	off := 0
	for i := range vb {
		if u := ordered(a[i*size:][:size]) - ordered(b[i*size:][:size]); u == 0 {
			continue
		} else if u < -1 || u > 1 {
			if d := math.Abs(float64(va[i]) - float64(vb[i])); !(d <= 4e-6*(math.Abs(float64(w[i]))+math.Abs(float64(vb[i])))) {
				t.Fatalf("%s: element %d is %v, PEFT has %v", what, i, va[i], vb[i])
			}
		}
		off++
	}
	if float64(off) > max(1, share*float64(len(vb))) {
		t.Errorf("%s: %d of %d elements are not PEFT's", what, off, len(vb))
	}
}

// ordered maps the bits of a float to an integer that grows with it.
func ordered(p []byte) int64 {
	var u uint64
	for i, b := range p {
		u |= uint64(b) << (8 * i)
	}
	top := uint64(1) << (8*len(p) - 1)
	if u&top != 0 {
		return -int64(u &^ top)
	}
	return int64(u)
}

func contents(tb testing.TB, x hf.Tensor) []byte {
	tb.Helper()
	p := make([]byte, x.Bytes())
	if err := x.ReadAt(p, 0); err != nil {
		tb.Fatal(err)
	}
	return p
}

func floats(tb testing.TB, x hf.Tensor) []float32 {
	tb.Helper()
	f, ok := x.DType.Float()
	if !ok {
		tb.Fatalf("%q is %s", x.Name, x.DType)
	}
	v := make([]float32, x.Elems())
	cast.ToF32(v, contents(tb, x), f)
	return v
}

func baseOf(src *hf.Checkpoint, name string) hf.Tensor {
	if t, ok := src.Lookup(name); ok {
		return t
	}
	for _, e := range []string{"model.embed_tokens.weight", "transformer.wte.weight"} {
		if t, ok := src.Lookup(e); ok && strings.HasSuffix(name, "lm_head.weight") {
			return t
		}
	}
	return hf.Tensor{}
}

// expected are the tensors of one file of an adapter's results; none where there is no file.
func expected(tb testing.TB, dir, name string) map[string]hf.Tensor {
	tb.Helper()
	path := filepath.Join(dir, "expected", name+".safetensors")
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	f, err := safetensors.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	out := map[string]hf.Tensor{}
	h := f.Header()
	for i := range h.Tensors {
		out[h.Tensors[i].Name] = hf.Tensor{Tensor: &h.Tensors[i], File: f}
	}
	return out
}

// upcast writes a checkpoint with every float widened to float32.
func upcast(t *testing.T, base string) string {
	t.Helper()
	src := openSource(t, base)
	var ts []formatstest.Tensor
	for _, x := range src.Tensors() {
		d := formatstest.Tensor{Name: x.Name, DType: "F32", Shape: x.Shape, Data: make([]byte, 4*x.Elems())}
		cast.FromF32(d.Data, floats(t, x), kernels.F32)
		ts = append(ts, d)
	}
	dir := t.TempDir()
	cfg := withDType(src.Config(), kernels.F32)
	formatstest.Write(t, dir, string(cfg.Encode()), ts...)
	return dir
}

// runMerge runs a plan and returns its result or error.
func runMerge(t *testing.T, p *Plan, out string) (*Result, error) {
	t.Helper()
	return Run(context.Background(), p, RunOptions{Out: out, NoSync: true})
}

// describeAs is the architecture of a checkpoint of that type.
func describeAs(t *testing.T, modelType string) *arch.Model {
	t.Helper()
	m, err := arch.Describe(map[string]any{"model_type": modelType}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
