package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/nf4"
)

// openSource opens a checkpoint for the length of a test.
func openSource(tb testing.TB, path string) *hf.Checkpoint {
	tb.Helper()
	src, err := hf.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := src.Close(); err != nil {
			tb.Error(err)
		}
	})
	return src
}

// mustPlan plans a quantization.
func mustPlan(tb testing.TB, path string, o QuantizeOptions) *Plan {
	tb.Helper()
	p, err := Quantize(openSource(tb, path), o)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// mustRun runs a plan into a new directory and returns it.
func mustRun(tb testing.TB, p *Plan, o RunOptions) string {
	tb.Helper()
	if o.Out == "" {
		o.Out = filepath.Join(tb.TempDir(), "out")
	}
	o.NoSync = true
	if _, err := Run(context.Background(), p, o); err != nil {
		tb.Fatal(err)
	}
	return o.Out
}

// options are the defaults with a change.
func options(change func(*QuantizeOptions)) QuantizeOptions {
	o := DefaultQuantize()
	if change != nil {
		change(&o)
	}
	return o
}

// readTree is the contents of all files below dir.
func readTree(tb testing.TB, dir string) map[string][]byte {
	tb.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return files
}

// sameTree fails unless two directories hold the same files with the same bytes.
func sameTree(tb testing.TB, want, got string) {
	tb.Helper()
	w, g := readTree(tb, want), readTree(tb, got)
	for name, b := range w {
		switch c, there := g[name]; {
		case !there:
			tb.Errorf("%s is missing", name)
		case !bytes.Equal(b, c):
			tb.Errorf("%s differs: %d and %d bytes", name, len(b), len(c))
		}
	}
	for name := range g {
		if _, there := w[name]; !there {
			tb.Errorf("%s is there, and should not be", name)
		}
	}
}

// nothingBeside fails when an output left something under a name of its own.
func nothingBeside(tb testing.TB, out string) {
	tb.Helper()
	left, err := filepath.Glob(out + ".*")
	if err != nil {
		tb.Fatal(err)
	}
	if len(left) > 0 {
		tb.Errorf("left beside the output: %q", left)
	}
}

// small is a checkpoint with several shards that takes milliseconds.
func small(tb testing.TB) string {
	tb.Helper()
	return fixtures.Synthetic(tb, filepath.Join(tb.TempDir(), "small"), fixtures.Spec{Hidden: 64, Intermediate: 192, Vocab: 160, Shards: 3, Seed: 7})
}

// variants are the sources and options whose paths through the engine differ.
func variants(tb testing.TB) map[string]func() (string, QuantizeOptions) {
	dir := fixtures.Dir(tb)
	arch := func(name string, change func(*QuantizeOptions)) func() (string, QuantizeOptions) {
		return func() (string, QuantizeOptions) { return filepath.Join(dir, "arch", name), options(change) }
	}
	spec := func(s fixtures.Spec, change func(*QuantizeOptions)) func() (string, QuantizeOptions) {
		return func() (string, QuantizeOptions) {
			return fixtures.Synthetic(tb, filepath.Join(tb.TempDir(), "source"), s), options(change)
		}
	}
	big := fixtures.Spec{Hidden: 512, Intermediate: 1376, Vocab: 512, Layers: 1, Seed: 3} // several chunks, a ragged last one
	f16, f32, gpt2 := big, big, big
	f16.DType, f32.DType, gpt2.Arch = "F16", "F32", "gpt2"
	return map[string]func() (string, QuantizeOptions){
		"bf16":      spec(big, nil),
		"f16":       spec(f16, func(o *QuantizeOptions) { o.DoubleQuant = false }),
		"f32":       spec(f32, func(o *QuantizeOptions) { o.BlockSize = 4096 }),
		"gpt2":      spec(gpt2, nil),
		"gpt2-f16":  spec(gpt2, func(o *QuantizeOptions) { o.DType = "float16" }),
		"fp4":       spec(big, func(o *QuantizeOptions) { o.Type, o.BlockSize = nf4.FP4, 32 }),
		"sharded":   spec(big, func(o *QuantizeOptions) { o.MaxShardSize = 300_000 }),
		"mixtral":   arch("mixtral", nil),
		"qwen3_moe": arch("qwen3_moe", nil),
	}
}

// The bytes are a function of source and options: not of the number of workers, nor of
// the memory they may use, nor of the chunks that follow from both.
func TestSameBytesForAnySchedule(t *testing.T) {
	for name, make := range variants(t) {
		t.Run(name, func(t *testing.T) {
			src, o := make()
			p := mustPlan(t, src, o)
			want := mustRun(t, p, RunOptions{})
			chunks := map[int64]bool{}
			for _, r := range []Resources{
				{Threads: 1}, {Threads: 2}, {Threads: 8},
				{Threads: 1, Memory: p.Schedule.Least}, {Threads: 8, Memory: p.Schedule.Least},
				{Threads: 3, Memory: 4 * p.Schedule.Least}, {Threads: 8, Memory: 1 << 40},
			} {
				o.Resources = r
				q := mustPlan(t, src, o)
				chunks[q.Schedule.ChunkElems] = true
				if q.Schedule.Memory > r.Memory && r.Memory > 0 {
					t.Errorf("%+v: %d bytes are planned", r, q.Schedule.Memory)
				}
				sameTree(t, want, mustRun(t, q, RunOptions{}))
			}
			if len(chunks) < 2 {
				t.Errorf("all schedules have the same chunks %v: nothing was shown", chunks)
			}
		})
	}
}

func TestMemoryBelowTheLeast(t *testing.T) {
	src := small(t)
	p := mustPlan(t, src, DefaultQuantize())
	if _, err := Quantize(openSource(t, src), options(func(o *QuantizeOptions) { o.Memory = p.Schedule.Least })); err != nil {
		t.Errorf("the least memory was refused: %v", err)
	}
	if _, err := Quantize(openSource(t, src), options(func(o *QuantizeOptions) { o.Memory = p.Schedule.Least - 1 })); err == nil {
		t.Error("less than the least memory was accepted")
	}
}

// NF4 without double quantization is a projection: its levels quantize to themselves.
func TestQuantizeOfDequantizedIsTheSame(t *testing.T) {
	for name, make := range variants(t) {
		t.Run(name, func(t *testing.T) {
			src, o := make()
			o.Type, o.DoubleQuant = nf4.NF4, false
			q := mustRun(t, mustPlan(t, src, o), RunOptions{})
			back, err := Dequantize(openSource(t, q), DefaultDequantize())
			if err != nil {
				t.Fatal(err)
			}
			d := mustRun(t, back, RunOptions{})
			again := mustRun(t, mustPlan(t, d, o), RunOptions{})
			for _, dir := range []string{q, again} { // it names the source, which differs
				if err := os.Remove(filepath.Join(dir, ManifestName)); err != nil {
					t.Fatal(err)
				}
			}
			sameTree(t, q, again)
		})
	}
}

// A plan is data: it survives JSON, planning twice gives the same, and its digest
// covers what the bytes depend on, the schedule not among it.
func TestPlanIsPureData(t *testing.T) {
	src := small(t)
	p := mustPlan(t, src, DefaultQuantize())
	digest := func(p *Plan) string {
		t.Helper()
		d, err := p.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	if a, b := digest(p), digest(mustPlan(t, src, DefaultQuantize())); a != b {
		t.Errorf("two plans of the same differ: %s %s", a, b)
	}
	if a, b := digest(p), digest(mustPlan(t, src, options(func(o *QuantizeOptions) { o.Threads, o.Memory = 7, 1<<30 }))); a != b {
		t.Errorf("the schedule is part of the identity: %s %s", a, b)
	}
	for name, change := range map[string]func(*QuantizeOptions){
		"type":         func(o *QuantizeOptions) { o.Type = nf4.FP4 },
		"block size":   func(o *QuantizeOptions) { o.BlockSize = 128 },
		"double quant": func(o *QuantizeOptions) { o.DoubleQuant = false },
		"dtype":        func(o *QuantizeOptions) { o.DType = "float16" },
		"skip":         func(o *QuantizeOptions) { o.Skip = []string{"*.mlp.*"} },
		"shards":       func(o *QuantizeOptions) { o.MaxShardSize = 100_000 },
	} {
		if digest(mustPlan(t, src, options(change))) == digest(p) {
			t.Errorf("%s is not part of the identity", name)
		}
	}
	a, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q Plan
	if err := json.Unmarshal(a, &q); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(&q)
	if err != nil {
		t.Fatal(err)
	}
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		t.Fatal("not JSON")
	}
	a, _ = json.Marshal(x) // sorts the keys of options
	b, _ = json.Marshal(y)
	if !bytes.Equal(a, b) {
		t.Error("the plan does not survive JSON")
	}
}

// Progress ends at the number of bytes that the plan announces.
func TestProgressAddsUp(t *testing.T) {
	for _, src := range fixtures.Models(t) {
		p := mustPlan(t, src, DefaultQuantize())
		var progress Progress
		mustRun(t, p, RunOptions{Progress: &progress})
		if got, want := progress.Bytes.Load(), p.Totals.BytesIn; got > want || got < want-int64(len(p.Jobs))*64 {
			t.Errorf("%s: progress ends at %d of %d bytes", src, got, want)
		}
		if got := progress.Tensors.Load(); got != int64(len(p.Jobs)) {
			t.Errorf("%s: %d of %d tensors", src, got, len(p.Jobs))
		}
	}
}

func keys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
