package verify_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/nf4"
	"github.com/nf4conv/nf4conv/verify"
)

func fixture(t testing.TB, name string) string {
	return filepath.Join(fixtures.Dir(t), filepath.FromSlash(name))
}

func open(t testing.TB, dir string) *hf.Checkpoint {
	t.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// quantized is the 4-bit form of a checkpoint.
func quantized(t testing.TB, dir string, edit func(*convert.QuantizeOptions)) string {
	t.Helper()
	o := convert.DefaultQuantize()
	if edit != nil {
		edit(&o)
	}
	p, err := convert.Quantize(open(t, dir), o)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "four")
	if _, err := convert.Run(context.Background(), p, convert.RunOptions{Out: out}); err != nil {
		t.Fatal(err)
	}
	return out
}

func ids(t testing.TB, sequences int) *verify.IDs {
	t.Helper()
	v, err := verify.ReadIDs(fixture(t, "models/kjv-llama/eval_ids.safetensors"), sequences)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func run(t testing.TB, base, candidate string, o verify.Options) *verify.Result {
	t.Helper()
	r, err := verify.Run(context.Background(), open(t, base), open(t, candidate), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func judged(r *verify.Result) *verify.Result {
	verify.DefaultPolicy(r.Kind, true, nil).Judge(r)
	return r
}

// TestGolden: figures over the whole text are those of transformers with the kernels of
// bitsandbytes. It takes half a minute per model, so it runs when asked for.
func TestGolden(t *testing.T) {
	if os.Getenv("NF4CONV_TEST_FULL") == "" {
		t.Skip("SKIPPED: 40,545 tokens through three pairs of models; NF4CONV_TEST_FULL=1 runs it")
	}
	base := fixture(t, "models/kjv-llama")
	b, err := os.ReadFile(filepath.Join(base, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		PPL   float64                       `json:"ppl"`
		Quant map[string]map[string]float64 `json:"quantizations"`
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{
		"ppl": "ppl.candidate", "ppl_ratio": "ppl.ratio", "mean_kld": "kld.mean", "median_kld": "kld.median", "p90_kld": "kld.p90", "p99_kld": "kld.p99",
		"p99.9_kld": "kld.p999", "max_kld": "kld.max", "same_top1": "top1", "mean_delta_p": "dp.mean", "rms_delta_p": "dp.rms", "scored_tokens": "tokens",
	}
	for name, edit := range map[string]func(*convert.QuantizeOptions){
		"nf4":              func(o *convert.QuantizeOptions) { o.DoubleQuant = false },
		"nf4_double_quant": nil,
		"fp4":              func(o *convert.QuantizeOptions) { o.DoubleQuant, o.Type = false, nf4.FP4 },
	} {
		t.Run(name, func(t *testing.T) {
			r := judged(run(t, base, quantized(t, base, edit), verify.Options{Text: ids(t, 0)}))
			check := func(what string, got, want float64) {
				t.Helper()
				limit := 1e-3
				if name == "nf4_double_quant" && (what == "kld.p999" || what == "kld.max") {
					limit = 3e-3 // 40 tokens and one: bitsandbytes' nested codes on a CPU are one off in 0.1 % of the blocks; its own file gives 2e-6 and 1e-5
				}
				t.Logf("%-20s %-14.8g golden %-14.8g off by %.1e", what, got, want, math.Abs(got/want-1))
				if !(math.Abs(got-want) <= limit*math.Abs(want)) {
					t.Errorf("%s: %.8g, want %.8g within %g", what, got, want, limit)
				}
			}
			w := want.Quant[name]
			for key, metric := range names {
				m, _ := r.Metric(metric)
				check(metric, float64(m.Value), w[key])
			}
			base, _ := r.Metric("ppl.base")
			check("ppl.base", float64(base.Value), want.PPL)
			kld, _ := r.Metric("kld.mean")
			check("kld.mean, error", float64(kld.StdErr), w["se_mean_kld"])
			ratio, _ := r.Metric("ppl.ratio")
			check("ln ppl.ratio, error", float64(ratio.StdErr/ratio.Value), w["se_ln_ppl_ratio"])
			largest := 0.0
			for _, x := range r.Tensors {
				if x.FourBit {
					largest = max(largest, float64(x.RelError))
				}
			}
			check("fourbit.rel_error, largest", largest, w["relative_weight_error_max"])
			if r.Verdict == verify.Fail {
				t.Errorf("verdict %s: %v", r.Verdict, r.Err(false))
			}
			t.Logf("verdict %s", r.Verdict)
			for _, l := range r.Layers {
				t.Logf("layer %d: relative error %.4f, cosine %.5f", l.Layer, l.RelError, l.Cosine)
			}
			for _, o := range r.Outcomes {
				t.Logf("%s: %s", o.Level, o.Text)
			}
		})
	}
}

// TestThreads: the same result for any number of threads.
func TestThreads(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	four := quantized(t, base, nil)
	var first []byte
	for _, threads := range []int{1, 2, 5} {
		r := judged(run(t, base, four, verify.Options{Text: ids(t, 3), Threads: threads}))
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if diff := cmp.Diff(string(first), string(b)); diff != "" {
			t.Errorf("%d threads: %s", threads, diff)
		}
	}
}
