package adapters

import (
	"context"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/nf4"
	"github.com/nf4conv/nf4conv/weights"
)

func open(t *testing.T, path string) *hf.Checkpoint {
	t.Helper()
	c, err := hf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// tune writes a checkpoint whose tensors that change chooses are the base's plus noise.
func tune(t *testing.T, base string, change func(name string) bool) string {
	t.Helper()
	c, out := open(t, base), filepath.Join(t.TempDir(), "tuned")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	views := map[string]safetensors.View{}
	for _, x := range c.Tensors() {
		b, err := bytesOf(x)
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := x.DType.Float(); ok && change(x.Name) {
			v := make([]float32, x.Elems())
			cast.ToF32(v, b, f)
			for i := range v {
				v[i] += float32(r.NormFloat64() * 0.01)
			}
			cast.FromF32(b, v, f)
		}
		views[x.Name] = raw{x.DType, x.Shape, b}
	}
	f, err := os.Create(filepath.Join(out, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := safetensors.Write(io.Writer(f), map[string]string{"format": "pt"}, views); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cfg, err := os.ReadFile(filepath.Join(base, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "config.json"), cfg, 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

func extract(t *testing.T, base, tuned string, o ExtractOptions) (*Extraction, string) {
	t.Helper()
	p, err := Extract(open(t, base), open(t, tuned), o)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "adapter")
	doc, err := p.Run(context.Background(), out, &Progress{})
	if err != nil {
		t.Fatal(err)
	}
	return doc, out
}

func merge(t *testing.T, base, adapter string, from4Bit bool) string {
	t.Helper()
	a, err := peft.Open(adapter)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	o := convert.DefaultMerge()
	o.Adapters, o.From4Bit = []convert.MergeAdapter{{Adapter: a, Weight: 1}}, from4Bit
	p, err := convert.Merge(open(t, base), o)
	if err != nil {
		t.Fatal(err)
	}
	return runPlan(t, p)
}

func runPlan(t *testing.T, p *convert.Plan) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	if _, err := convert.Run(context.Background(), p, convert.RunOptions{Out: out, NoSync: true, Tool: convert.Tool{Name: "test"}}); err != nil {
		t.Fatal(err)
	}
	return out
}

func values(t *testing.T, c *hf.Checkpoint) map[string][]float32 {
	t.Helper()
	set, err := weights.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]float32{}
	for _, x := range set.Tensors() {
		if !readable(x) {
			continue
		}
		v := make([]float32, elems(x))
		if err := x.ReadF32(v, 0); err != nil {
			t.Fatal(err)
		}
		out[x.Name()] = v
	}
	return out
}

// sameWithinRounding allows one step of bfloat16, and what float32 loses of the sum.
func sameWithinRounding(t *testing.T, got, want string) {
	t.Helper()
	c := open(t, want)
	a, b := values(t, open(t, got)), values(t, c)
	for name, w := range b {
		v, differ := a[name], 0
		if len(v) != len(w) {
			t.Errorf("%s: %d elements, want %d", name, len(v), len(w))
			continue
		}
		for i := range w {
			if v[i] != w[i] {
				differ++
			}
			// Of a float32 tensor the sum is rounded to the last places of the delta.
			if d := math.Abs(float64(v[i] - w[i])); d > math.Abs(float64(w[i]))/128+2e-7 {
				t.Errorf("%s, element %d: %v, want %v", name, i, v[i], w[i])
				break
			}
		}
		if d := c.Tensors(); d[0].DType != "F32" && differ*100 > len(w)+100 {
			t.Errorf("%s: %d of %d elements differ", name, differ, len(w))
		}
	}
}

// Factors, biases, norms and embeddings, tied and not, linear and Conv1D: at full rank
// merge turns the adapter back into the tuned checkpoint.
func TestExtractAndMergeBack(t *testing.T) {
	for _, name := range []string{"llama", "mistral", "qwen2", "gpt2", "opt", "gemma2"} {
		base := filepath.Join(fixtures.Dir(t), "arch", name)
		tuned := tune(t, base, func(string) bool { return true })
		doc, out := extract(t, base, tuned, ExtractOptions{Rank: 1 << 16, Threads: 2})
		if doc.Totals.Factors == 0 || doc.Totals.Replaced == 0 || doc.Totals.Residual > 1e-5 {
			t.Errorf("%s: %+v", name, doc.Totals)
		}
		back := merge(t, base, out, false)
		sameWithinRounding(t, back, tuned)
		if a, b := open(t, back), open(t, tuned); len(a.Tensors()) != len(b.Tensors()) { // a tied embedding stays one matrix
			t.Errorf("%s: %d tensors, want %d", name, len(a.Tensors()), len(b.Tensors()))
		}
	}
}

// Where some layers did not change they get nothing, and at a low rank the report is what
// the merged weights say.
func TestExtractLowRank(t *testing.T) {
	base := filepath.Join(fixtures.Dir(t), "models", "kjv-llama")
	tuned := tune(t, base, func(name string) bool { return strings.Contains(name, "layers.1.mlp") })
	doc, out := extract(t, base, tuned, ExtractOptions{Rank: 8, Threads: 2})
	if doc.Totals.Factors != 3 || doc.Totals.Replaced != 0 || len(doc.Layers) != 3 {
		t.Fatalf("%+v", doc.Totals)
	}
	w, v, m := values(t, open(t, base)), values(t, open(t, tuned)), values(t, open(t, merge(t, base, out, false)))
	for _, l := range doc.Layers {
		var rest, all float64
		for i := range w[l.Tensor] {
			d, e := float64(v[l.Tensor][i]-w[l.Tensor][i]), float64(v[l.Tensor][i]-m[l.Tensor][i])
			rest, all = rest+e*e, all+d*d
		}
		if got := math.Sqrt(rest / all); math.Abs(got-l.Residual) > 5e-3 || l.Rank != 8 {
			t.Errorf("%s: residual %v after merging, reported %v, rank %d", l.Tensor, got, l.Residual, l.Rank)
		}
	}
	again := filepath.Join(t.TempDir(), "again")
	p, err := Extract(open(t, base), open(t, tuned), ExtractOptions{Rank: 8, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Run(context.Background(), again, &Progress{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{peft.ConfigName, peft.WeightsName, peft.RecordName} {
		a, _ := os.ReadFile(filepath.Join(out, name))
		b, _ := os.ReadFile(filepath.Join(again, name))
		if len(a) == 0 || !slices.Equal(a, b) {
			t.Errorf("%s differs between 1 and 2 threads", name)
		}
	}
}

// Ranks of their own go into the patterns, and merge reads them.
func TestExtractEnergy(t *testing.T) {
	base := filepath.Join(fixtures.Dir(t), "arch", "mistral")
	tuned := tune(t, base, func(name string) bool { return strings.Contains(name, "_proj") })
	doc, out := extract(t, base, tuned, ExtractOptions{Energy: 0.6, Threads: 2})
	ranks := map[int]bool{}
	for _, l := range doc.Layers {
		ranks[l.Rank] = true
		if l.Energy < 0.6-1e-4 {
			t.Errorf("%s: %v kept", l.Tensor, l.Energy)
		}
	}
	if len(ranks) < 2 {
		t.Fatalf("one rank for all layers, %v: the test shows nothing", ranks)
	}
	w, m, v := values(t, open(t, base)), values(t, open(t, merge(t, base, out, false))), values(t, open(t, tuned))
	for _, l := range doc.Layers {
		var rest, all float64
		for i := range w[l.Tensor] {
			d, e := float64(v[l.Tensor][i]-w[l.Tensor][i]), float64(v[l.Tensor][i]-m[l.Tensor][i])
			rest, all = rest+e*e, all+d*d
		}
		if got := math.Sqrt(rest / all); math.Abs(got-l.Residual) > 0.02 {
			t.Errorf("%s: residual %v after merging, reported %v", l.Tensor, got, l.Residual)
		}
	}
}

// What a 4-bit candidate lost of its model: linear and Conv1D, whose 4-bit shape is turned.
func TestExtractResidual(t *testing.T) {
	for _, name := range []string{"mistral", "gpt2"} {
		model := filepath.Join(fixtures.Dir(t), "arch", name)
		q, err := convert.Quantize(open(t, model), convert.QuantizeOptions{Type: nf4.NF4, BlockSize: 64, DoubleQuant: true, DType: "auto", MaxShardSize: convert.DefaultMaxShardSize})
		if err != nil {
			t.Fatal(err)
		}
		candidate := runPlan(t, q)
		if _, err := Extract(open(t, candidate), open(t, model), ExtractOptions{Rank: 4}); err == nil {
			t.Errorf("%s: a 4-bit base is taken without being asked for", name)
		}
		doc, _ := extract(t, candidate, model, ExtractOptions{Rank: 1 << 16, From4Bit: true, Threads: 2})
		if doc.Totals.Factors == 0 || doc.Totals.Residual > 1e-5 {
			t.Errorf("%s: %+v", name, doc.Totals)
		}
		for _, l := range doc.Layers {
			if l.Part == PartFactors && (l.Relative < 0.05 || l.Relative > 0.15) { // NF4 errs by about 0.09; a matrix that is not turned by 1.4
				t.Errorf("%s, %s: the residual is %v of the weight", name, l.Tensor, l.Relative)
			}
		}
	}
}

func TestExtractRefuses(t *testing.T) {
	arch := func(name string) string { return filepath.Join(fixtures.Dir(t), "arch", name) }
	all := func(string) bool { return true }
	for _, c := range []struct {
		name, base, tuned, want string
		o                       ExtractOptions
	}{
		{"nothing differs", arch("llama"), arch("llama"), "nothing to extract", ExtractOptions{Rank: 4}},
		{"another type", arch("llama"), arch("gpt2"), `the base is a "llama"`, ExtractOptions{Rank: 4}},
		{"no rule", arch("llama"), arch("llama"), "neither --rank nor --energy", ExtractOptions{}},
		{"no 4-bit base", arch("llama"), arch("llama"), "is not a 4-bit checkpoint", ExtractOptions{Rank: 4, From4Bit: true}},
		{"norms alone", arch("llama"), tune(t, arch("llama"), func(n string) bool { return strings.Contains(n, "norm") }), "no LoRA adapter without factors", ExtractOptions{Rank: 4}},
		{"experts", arch("mixtral"), tune(t, arch("mixtral"), all), "experts of a layer as one parameter", ExtractOptions{Rank: 4}},
	} {
		out := filepath.Join(t.TempDir(), "out")
		p, err := Extract(open(t, c.base), open(t, c.tuned), c.o)
		if err == nil {
			_, err = p.Run(context.Background(), out, &Progress{})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
		if entries, _ := os.ReadDir(filepath.Dir(out)); len(entries) > 0 {
			t.Errorf("%s: something is left behind", c.name)
		}
	}
}
