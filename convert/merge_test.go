package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/nf4"
)

func kjv(t *testing.T) string               { return filepath.Join(fixtures.Dir(t), "models", "kjv-llama") }
func tiny(t *testing.T, name string) string { return filepath.Join(fixtures.Dir(t), "arch", name) }

// adapter writes an adapter with the given keys beside r and lora_alpha.
func adapter(t *testing.T, keys string, ts ...formatstest.Tensor) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "made")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	formatstest.Write(t, dir, "", ts...)
	if err := os.Rename(filepath.Join(dir, "model.safetensors"), filepath.Join(dir, peft.WeightsName)); err != nil {
		t.Fatal(err)
	}
	text := `{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": true`
	if keys != "" {
		text += ", " + keys
	}
	if err := os.WriteFile(filepath.Join(dir, peft.ConfigName), []byte(text+"}"), 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// values is a float32 tensor of an adapter: scale times normal deviates.
func values(name string, scale float64, shape ...int64) formatstest.Tensor {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	r := rand.New(rand.NewPCG(7, uint64(len(name))))
	var b []byte
	for range n {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(scale*r.NormFloat64())))
	}
	return formatstest.Tensor{Name: "base_model.model." + name, DType: "F32", Shape: shape, Data: b}
}

const q0 = "model.layers.0.self_attn.q_proj"

// pair are factors of rank 2 for a [64, 64] matrix of the tiny models.
func pair(module string, scale float64) []formatstest.Tensor {
	return []formatstest.Tensor{values(module+".lora_A.weight", 0.2, 2, 64), values(module+".lora_B.weight", scale, 64, 2)}
}

// A pair whose B is zero leaves its tensor as it is, bit for bit, beside one that does not.
func TestMergeOfZeroB(t *testing.T) {
	base := tiny(t, "llama")
	other := "model.layers.1.self_attn.q_proj"
	got := merged(t, base, nil, adapter(t, "", append(pair(q0, 0), pair(other, 0.1)...)...))
	src := openSource(t, base)
	for _, x := range src.Tensors() {
		y, _ := got.Lookup(x.Name)
		if same := bytes.Equal(contents(t, x), contents(t, y)); same == (x.Name == other+".weight") {
			t.Errorf("%q is the base's: %v", x.Name, same)
		}
	}
}

// A merge that changes nothing fails as input, and leaves no output: all of B zero, or a
// delta below half a unit in the last place everywhere.
// Several adapters: deltas are weighted and summed in float32, then rounded once. Half of an
// adapter twice is the adapter; an adapter less itself is refused as no change.
func TestMergeOfSeveral(t *testing.T) {
	base := kjv(t)
	dir := filepath.Join(fixtures.Dir(t), "adapters")
	a, b := filepath.Join(dir, "comb-a"), filepath.Join(dir, "comb-b")
	one := merged(t, base, nil, a)
	half := merged(t, base, func(o *MergeOptions) { o.Adapters[0].Weight, o.Adapters[1].Weight = 0.5, 0.5 }, a, a)
	sum := merged(t, base, func(o *MergeOptions) { o.Adapters[1].Weight = -0.5 }, a, b)
	src := openSource(t, base)
	const name = "model.layers.1.self_attn.q_proj.weight"
	x, _ := one.Lookup(name)
	y, _ := half.Lookup(name)
	compareULP(t, "two halves", y, x, hf.Tensor{}, 0.001)

	w, _ := src.Lookup(name)
	z, _ := sum.Lookup(name)
	got, from := floats(t, z), floats(t, w)
	da, db := deltaOf(t, a, 2, name), deltaOf(t, b, -0.25, name)
	off := 0
	for i := range got {
		want := []float32{float32(float64(from[i]) + da[i] + db[i])}
		roundTo(want, 1) // bfloat16
		if got[i] != want[0] {
			off++
		}
	}
	if off*1000 > len(got) {
		t.Errorf("%d of %d elements are not the rounded sum", off, len(got))
	}
	p := mustMerge(t, base, func(o *MergeOptions) { o.Adapters[1].Weight = -1 }, a, a)
	if _, err := runMerge(t, p, filepath.Join(t.TempDir(), "out")); fault.ClassOf(err) != fault.Input {
		t.Errorf("an adapter less itself: error %v, want class input", err)
	}
}

// deltaOf is scale B A in float64.
func deltaOf(t *testing.T, dir string, scale float64, name string) []float64 {
	t.Helper()
	a := openAdapter(t, dir)
	for _, x := range a.Targets() {
		if x.Module+".weight" != name {
			continue
		}
		fa, fb := floats(t, x.A), floats(t, x.B)
		r, in, out := int(x.A.Shape[0]), int(x.A.Shape[1]), int(x.B.Shape[0])
		d := make([]float64, in*out)
		for i := range out {
			for j := range in {
				for k := range r {
					d[i*in+j] += scale * float64(fb[i*r+k]) * float64(fa[k*in+j])
				}
			}
		}
		return d
	}
	t.Fatalf("%s has no factors for %s", dir, name)
	return nil
}

// Merging and quantizing in one pass gives the bytes of merging, then quantizing.
func TestMergeQuantizes(t *testing.T) {
	dir := filepath.Join(fixtures.Dir(t), "adapters")
	for name, base := range map[string]string{"plain": "models/kjv-llama", "gpt2": "arch/gpt2", "gpt2-dora": "arch/gpt2", "dora": "models/kjv-llama", "head-tied": "arch/llama", "moe-parameters": "arch/mixtral"} {
		for _, dq := range []bool{true, false} {
			q := DefaultQuantize()
			q.DoubleQuant = dq
			base := filepath.Join(fixtures.Dir(t), base)
			once := openSource(t, mustRun(t, mustMerge(t, base, func(o *MergeOptions) { o.Quantize = &q }, filepath.Join(dir, name)), RunOptions{}))
			m := mustRun(t, mustMerge(t, base, nil, filepath.Join(dir, name)), RunOptions{})
			twice := openSource(t, mustRun(t, mustPlan(t, m, q), RunOptions{}))
			if len(once.Tensors()) != len(twice.Tensors()) {
				t.Fatalf("%s: %d tensors, in two steps %d", name, len(once.Tensors()), len(twice.Tensors()))
			}
			for _, x := range twice.Tensors() {
				y, ok := once.Lookup(x.Name)
				if !ok || !bytes.Equal(contents(t, x), contents(t, y)) {
					t.Errorf("%s: %q is not what two steps give", name, x.Name)
				}
			}
			if a, b := string(once.Config().Encode()), string(twice.Config().Encode()); a != b {
				t.Errorf("%s: config.json is\n%s\nin two steps\n%s", name, a, b)
			}
		}
	}
}

// What a 4-bit base dequantizes to can be merged into, when that is asked for.
func TestMergeFrom4Bit(t *testing.T) {
	for _, c := range []struct{ adapter, base string }{{"plain", "models/kjv-llama"}, {"gpt2", "arch/gpt2"}} {
		dir := filepath.Join(fixtures.Dir(t), "adapters", c.adapter)
		four := mustRun(t, mustPlan(t, filepath.Join(fixtures.Dir(t), c.base), DefaultQuantize()), RunOptions{})
		o := DefaultMerge()
		o.Adapters = []MergeAdapter{{Adapter: openAdapter(t, dir), Weight: 1}}
		if _, err := Merge(openSource(t, four), o); fault.ClassOf(err) != fault.Input || len(fault.Hints(err)) == 0 {
			t.Errorf("without being asked: error %v, want class input and a hint", err)
		}
		from := func(o *MergeOptions) { o.From4Bit = true }
		got := openSource(t, mustRun(t, mustMerge(t, four, from, dir), RunOptions{}))
		p, err := Dequantize(openSource(t, four), DefaultDequantize())
		if err != nil {
			t.Fatal(err)
		}
		want := merged(t, mustRun(t, p, RunOptions{}), nil, dir)
		for _, x := range want.Tensors() {
			y, ok := got.Lookup(x.Name)
			if !ok || !bytes.Equal(contents(t, x), contents(t, y)) {
				t.Errorf("%s: %q is not what dequantize, then merge gives", c.adapter, x.Name)
			}
		}
		if _, there := got.Config().Get("quantization_config"); there {
			t.Error("config.json still says that it is quantized")
		}
		q := DefaultQuantize()
		again := openSource(t, mustRun(t, mustMerge(t, four, func(o *MergeOptions) { o.From4Bit, o.Quantize = true, &q }, dir), RunOptions{}))
		twice := openSource(t, mustRun(t, mustPlan(t, got.Path(), q), RunOptions{}))
		for _, x := range twice.Tensors() {
			y, ok := again.Lookup(x.Name)
			if !ok || !bytes.Equal(contents(t, x), contents(t, y)) {
				t.Errorf("%s: quantized again, %q is not what two steps give", c.adapter, x.Name)
			}
		}
	}
	o := DefaultMerge()
	o.From4Bit = true
	o.Adapters = []MergeAdapter{{Adapter: openAdapter(t, filepath.Join(fixtures.Dir(t), "adapters", "plain")), Weight: 1}}
	if _, err := Merge(openSource(t, kjv(t)), o); fault.ClassOf(err) != fault.Usage {
		t.Errorf("--from-4bit on a 16-bit base: error %v, want class usage", err)
	}
}

// Bytes and figures do not depend on threads, memory or an interruption.
func TestMergeIsTheSameUnderAnySchedule(t *testing.T) {
	base, dir := kjv(t), filepath.Join(fixtures.Dir(t), "adapters")
	adapters := []string{filepath.Join(dir, "plain"), filepath.Join(dir, "comb-b")}
	for _, quantize := range []bool{false, true} {
		with := func(res Resources) func(*MergeOptions) {
			return func(o *MergeOptions) {
				o.Resources = res
				if quantize {
					q := DefaultQuantize()
					o.Quantize = &q
				}
			}
		}
		want := readTree(t, mustRun(t, mustMerge(t, base, with(Resources{Threads: 1}), adapters...), RunOptions{}))
		p := mustMerge(t, base, with(Resources{Threads: 5}), adapters...)
		least := p.Schedule.Least
		same(t, want, mustRun(t, p, RunOptions{}))
		same(t, want, mustRun(t, mustMerge(t, base, with(Resources{Threads: 3, Memory: least}), adapters...), RunOptions{}))

		out := filepath.Join(t.TempDir(), "out")
		p = mustMerge(t, base, with(Resources{Threads: 2}), adapters...)
		var writes failAfter
		writes.left.Store(40)
		if _, err := Run(context.Background(), p, RunOptions{Out: out, NoSync: true, wrapWrites: writes.wrap}); err == nil {
			t.Fatal("the run was not interrupted")
		}
		res, err := Run(context.Background(), mustMerge(t, base, with(Resources{}), adapters...), RunOptions{Out: out, NoSync: true})
		if err != nil || res.Resumed == 0 {
			t.Fatalf("resumed %+v, %v", res, err)
		}
		same(t, want, out)
	}
}

func same(t *testing.T, want map[string][]byte, dir string) {
	t.Helper()
	got := readTree(t, dir)
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%q differs", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// failAfter lets some writes through.
type failAfter struct{ left atomic.Int64 }

func (f *failAfter) wrap(w io.WriterAt) io.WriterAt { return &failingWriter{f, w} }

type failingWriter struct {
	f *failAfter
	w io.WriterAt
}

func (w *failingWriter) WriteAt(p []byte, off int64) (int, error) {
	if w.f.left.Add(-1) < 0 {
		return 0, io.ErrShortWrite
	}
	return w.w.WriteAt(p, off)
}

// What does not go with the base is refused by the plan, as input.
// What cannot count half, or together with another adapter, is refused.
// Non-finite factors, and sums that the dtype cannot hold, are found while the run reads them.
// A base that is not the recorded one is refused before anything is written; the right one
// is taken.
// The gate: less than the share asked for fails as a gate, without an output, and the same
// run without it finishes what was done.
// Figures of the report are those of a direct computation over the whole tensors.
func TestMergeFigures(t *testing.T) {
	base, dir := kjv(t), filepath.Join(fixtures.Dir(t), "adapters", "plain")
	for _, quantize := range []bool{false, true} {
		p := mustMerge(t, base, func(o *MergeOptions) {
			if quantize {
				o.Quantize = &QuantizeOptions{Type: nf4.NF4, BlockSize: 64, DoubleQuant: true, DType: "auto", MaxShardSize: 1}
			}
		}, dir)
		out := filepath.Join(t.TempDir(), "out")
		res, err := runMerge(t, p, out)
		if err != nil {
			t.Fatal(err)
		}
		if quantize {
			d, err := Dequantize(openSource(t, out), DequantizeOptions{DType: "float32", MaxShardSize: DefaultMaxShardSize})
			if err != nil {
				t.Fatal(err)
			}
			out = mustRun(t, d, RunOptions{})
		}
		src, got := openSource(t, base), openSource(t, out)
		if len(res.Merge.Tensors) != 7 {
			t.Fatalf("%d tensors, want 7", len(res.Merge.Tensors))
		}
		for _, m := range res.Merge.Tensors {
			x, _ := src.Lookup(m.Tensor)
			y, _ := got.Lookup(m.Tensor)
			w, v, d := floats(t, x), floats(t, y), deltaOf(t, dir, 2, m.Tensor)
			var rd, dd, ww float64
			changed := 0
			for i := range w {
				rd += float64(v[i]-w[i]) * d[i]
				dd += d[i] * d[i]
				ww += float64(w[i]) * float64(w[i])
				if v[i] != w[i] {
					changed++
				}
			}
			// A loader rounds what it dequantizes to 16 bits, which the figure leaves out.
			if math.Abs(m.Kept-rd/dd) > 1e-3 || math.Abs(m.Relative-math.Sqrt(dd/ww)) > 1e-4 || !quantize && math.Abs(m.Changed-float64(changed)/float64(len(w))) > 1e-3 {
				t.Errorf("%s: kept %v, relative %v, changed %v; want %v, %v, %v", m.Tensor, m.Kept, m.Relative, m.Changed, rd/dd, math.Sqrt(dd/ww), float64(changed)/float64(len(w)))
			}
			if len(m.Terms) != 1 || m.Terms[0].Rank != 8 || m.Terms[0].Scale != 2 {
				t.Errorf("%s: terms %+v, want rank 8 and scale 2", m.Tensor, m.Terms)
			}
		}
	}
}

// The manifest names the adapters and every tensor that went into the output.
func TestMergeManifest(t *testing.T) {
	out := mustRun(t, mustMerge(t, tiny(t, "mistral"), nil, filepath.Join(fixtures.Dir(t), "adapters", "embeddings")), RunOptions{})
	b, err := os.ReadFile(filepath.Join(out, ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if m.Verb != "merge" || m.Merge == nil || len(m.Merge.Adapters) != 1 || m.Merge.Adapters[0].Name != "embeddings" || m.Merge.Adapters[0].Pairs == 0 {
		t.Fatalf("%+v", m.Merge)
	}
	used := map[string]bool{}
	for _, x := range m.Tensors {
		for _, s := range x.Source {
			used[s.File+" "+s.Tensor] = true
		}
	}
	a := openAdapter(t, filepath.Join(fixtures.Dir(t), "adapters", "embeddings"))
	for _, x := range a.File().Header().Tensors {
		if !used["embeddings/"+peft.WeightsName+" "+x.Name] {
			t.Errorf("no output says that it was made from %q", x.Name)
		}
	}
}

// A resized vocabulary: embedding and head are the adapter's, config.json and the choice of
// tokenizer follow.
// Tied embeddings of which a whole one was trained, both, or one pair for both.
// The orientation of experts' factors: shapes decide, and where they cannot, the version.
// Rows, factors and biases together in the order that the plan lists.
func TestMergePlanIsData(t *testing.T) {
	p := mustMerge(t, tiny(t, "qwen2"), nil, filepath.Join(fixtures.Dir(t), "adapters", "lora-bias"))
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"op":"add"`, `"rounding":"once"`, `"layout":"bias"`, `"layout":"linear"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the plan does not say %s", want)
		}
	}
	if !slices.ContainsFunc(p.Jobs, func(j Job) bool { return strings.HasPrefix(j.Why, "merged with lora-bias") }) {
		t.Error("no job says what it is merged with")
	}
	other := mustMerge(t, tiny(t, "qwen2"), peftSafe, filepath.Join(fixtures.Dir(t), "adapters", "lora-bias"))
	x, err := p.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if y, err := other.Digest(); err != nil || x == y {
		t.Errorf("two roundings are one plan: %v, %v", y, err)
	}
}

// decoded are the values of a tensor that values made.
func decoded(x formatstest.Tensor) []float32 {
	v := make([]float32, len(x.Data)/4)
	cast.ToF32(v, x.Data, kernels.F32)
	return v
}
