package adapters

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
)

func adapter(t *testing.T, dir string) *peft.Adapter {
	t.Helper()
	a, err := peft.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// combineAll combines and opens the result.
func combineAll(t *testing.T, o CombineOptions, in ...CombineInput) (*Combination, *peft.Adapter) {
	t.Helper()
	p, err := Combine(in, o)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	doc, err := p.Run(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	return doc, adapter(t, out)
}

// deltas are scale B A of every layer, in float64.
func deltas(t *testing.T, a *peft.Adapter) map[string][]float64 {
	t.Helper()
	out := map[string][]float64{}
	for _, x := range a.Targets() {
		av, bv := floatsIn(t, x.A), floatsIn(t, x.B)
		out[x.Module] = product(av, bv, int(x.A.Shape[0]), a.Config().ScaleOf(x.Module, x.A.Shape[0]))
	}
	return out
}

func product(a, b []float32, rank int, scale float64) []float64 {
	rows, in := len(b)/rank, len(a)/rank
	d := make([]float64, rows*in)
	for i := range rows {
		for k := range rank {
			for j := range in {
				d[i*in+j] += scale * float64(b[i*rank+k]) * float64(a[k*in+j])
			}
		}
	}
	return d
}

func floatsIn(t *testing.T, x hf.Tensor) []float32 {
	t.Helper()
	v, err := peft.ReadAll(&x)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// apart is |x - y| / |y|.
func apart(x, y []float64) float64 {
	var d, n float64
	for i := range y {
		d, n = d+(x[i]-y[i])*(x[i]-y[i]), n+y[i]*y[i]
	}
	return math.Sqrt(d / n)
}

type combinations struct {
	Cases map[string]struct {
		Adapters []string  `json:"adapters"`
		Weights  []float64 `json:"weights"`
		Type     string    `json:"combination_type"`
		Rank     int       `json:"svd_rank"`
		Density  float64   `json:"density"`
		Sign     string    `json:"majority_sign_method"`
		Distance float64   `json:"relative_distance_to_weighted_sum_of_deltas"`
	} `json:"cases"`
}

// PEFT 0.21.2 made the same of comb-a, comb-b and comb-c with add_weighted_adapter. Factors
// that are combined element by element must have its bits; products of the others agree
// up to the rounding of float32.
func TestCombineGolden(t *testing.T) {
	dir := filepath.Join(fixtures.Dir(t), "adapters")
	text, err := os.ReadFile(filepath.Join(dir, "combinations.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden combinations
	if err := json.Unmarshal(text, &golden); err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(filepath.Join(dir, "combinations.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string]hf.Tensor{}
	for i, x := range f.Header().Tensors {
		want[x.Name] = hf.Tensor{Tensor: &f.Header().Tensors[i], File: f}
	}
	for name, c := range golden.Cases {
		t.Run(name, func(t *testing.T) {
			o := CombineOptions{Method: c.Type, Rank: c.Rank, Density: c.Density, MajoritySign: c.Sign, Threads: 1}
			if Elects(c.Type) && c.Sign == "" {
				o.MajoritySign = "total"
			}
			var in []CombineInput
			for i, x := range c.Adapters {
				in = append(in, CombineInput{adapter(t, filepath.Join(dir, "comb-"+x)), c.Weights[i]})
			}
			doc, got := combineAll(t, o, in...)
			x := got.Targets()[0]
			a, b := floatsIn(t, want[name+"/lora_A"]), floatsIn(t, want[name+"/lora_B"])
			if !o.svd() && c.Type != "cat" && (!slices.Equal(floatsIn(t, x.A), a) || !slices.Equal(floatsIn(t, x.B), b)) {
				t.Error("the factors are not PEFT's bits")
			}
			rank := int(want[name+"/lora_A"].Shape[0])
			// PEFT decomposes in float32, which turns the directions on either side of the cut by
			// 2^-24 over their distance; whole matrices are iterated here until less than 0.5 % of
			// the squared residual is to be won.
			limit := map[bool]float64{false: 2e-6, true: 1e-5}[c.Type == "svd"]
			if o.svd() && c.Type != "svd" {
				limit = 2e-3
			}
			if gap := apart(deltas(t, got)[x.Module], product(a, b, rank, 1)); gap > limit {
				t.Errorf("B A is %.3g away from PEFT's", gap)
			}
			if l := doc.Layers[0]; math.Abs(l.Distance-c.Distance) > 1e-5 {
				t.Errorf("distance %v, PEFT's is %v", l.Distance, c.Distance)
			}
		})
	}
	if len(golden.Cases) < 11 {
		t.Errorf("only %d cases", len(golden.Cases))
	}
}

// sum is the definition: the weighted sum of the deltas.
func sum(t *testing.T, in []CombineInput) map[string][]float64 {
	out := map[string][]float64{}
	for _, x := range in {
		for m, d := range deltas(t, x.Adapter) {
			if out[m] == nil {
				out[m] = make([]float64, len(d))
			}
			for i, v := range d {
				out[m][i] += x.Weight * v
			}
		}
	}
	return out
}

// Scales of every kind are in the factors: rsLoRA, patterns, embeddings, convolutions are
// those of the sum, for one adapter and for two.
func TestCombineIsTheSum(t *testing.T) {
	for _, name := range []string{"plain", "rslora", "patterns", "embeddings", "gpt2", "half-bf16", "lora-bias", "float-alpha", "tokens", "modules-to-save", "bias-all"} {
		a := adapter(t, filepath.Join(fixtures.Dir(t), "adapters", name))
		for _, method := range []string{"cat", "svd"} {
			// Twice the same, so that replacements are the same too.
			in := []CombineInput{{a, 1.75}, {a, -0.75}}
			doc, got := combineAll(t, CombineOptions{Method: method, Threads: 2}, in...)
			want := sum(t, in)
			have := deltas(t, got)
			if len(have) != len(want) || len(doc.Layers) != len(want) {
				t.Fatalf("%s: %d layers, want %d", name, len(have), len(want))
			}
			for m, d := range want {
				if gap := apart(have[m], d); gap > 1e-6 {
					t.Errorf("%s, %s: %s is %.3g away from the sum", name, method, m, gap)
				}
			}
			if got.Config().RSLoRA || len(got.Replacements()) != len(a.Replacements()) || len(got.TokenRows()) != len(a.TokenRows()) || got.Config().LoraBias != a.Config().LoraBias {
				t.Errorf("%s: %+v", name, got.Config())
			}
		}
	}
}

// A rank or an energy cuts the singular values: what is left is what was promised.
func TestCombineResize(t *testing.T) {
	a := adapter(t, filepath.Join(fixtures.Dir(t), "adapters", "plain"))
	doc, got := combineAll(t, CombineOptions{Method: "svd", Rank: 3}, CombineInput{a, 1})
	want, have := deltas(t, a), deltas(t, got)
	for _, l := range doc.Layers {
		if gap := apart(have[l.Module], want[l.Module]); l.Rank != 3 || math.Abs(gap-l.Residual) > 1e-6 || math.Abs(1-l.Residual*l.Residual-l.Energy) > 1e-9 {
			t.Errorf("%+v, measured %v", l, gap)
		}
	}
	doc, got = combineAll(t, CombineOptions{Method: "svd", Energy: 0.9}, CombineInput{a, 1})
	ranks := map[int]bool{}
	for _, l := range doc.Layers {
		ranks[l.Rank] = true
		if l.Energy < 0.9 {
			t.Errorf("%s keeps %v", l.Module, l.Energy)
		}
	}
	if len(ranks) < 2 || len(got.Targets()) != len(a.Targets()) {
		t.Errorf("ranks %v", ranks)
	}
}

func TestCombineRefuses(t *testing.T) {
	at := func(name string) CombineInput {
		return CombineInput{adapter(t, filepath.Join(fixtures.Dir(t), "adapters", name)), 1}
	}
	half := func(in CombineInput) CombineInput { in.Weight = 0.5; return in }
	zero := func(in CombineInput) CombineInput { in.Weight = 0; return in }
	cat, linear := CombineOptions{Method: "cat"}, CombineOptions{Method: "linear"}
	for name, c := range map[string]struct {
		o     CombineOptions
		in    []CombineInput
		class fault.Class
		want  string
	}{
		"DoRA":              {cat, []CombineInput{at("dora")}, fault.Input, "use_dora"},
		"experts":           {cat, []CombineInput{at("moe-parameters")}, fault.Input, "target_parameters"},
		"ranks":             {linear, []CombineInput{at("comb-a"), at("comb-c")}, fault.Input, "rank 8 in"},
		"other base":        {cat, []CombineInput{at("lora-bias"), at("layers")}, fault.Input, ""},
		"half a module":     {cat, []CombineInput{half(at("modules-to-save"))}, fault.Input, "without the base nobody knows"},
		"half of rows":      {cat, []CombineInput{half(at("tokens"))}, fault.Input, "without the base nobody knows"},
		"half a bias":       {cat, []CombineInput{half(at("bias-all"))}, fault.Input, "without the base nobody knows"},
		"weight 0":          {cat, []CombineInput{zero(at("plain"))}, fault.Usage, "weight of 0"},
		"none":              {cat, nil, fault.Usage, "no adapter"},
		"method":            {CombineOptions{Method: "slerp"}, []CombineInput{at("plain")}, fault.Usage, "expected one of"},
		"rank of cat":       {CombineOptions{Method: "cat", Rank: 4}, []CombineInput{at("plain")}, fault.Usage, "svd forms"},
		"no density":        {CombineOptions{Method: "ties", MajoritySign: "total"}, []CombineInput{at("plain")}, fault.Usage, "needs --density"},
		"density of linear": {CombineOptions{Method: "linear", Density: 0.5}, []CombineInput{at("plain")}, fault.Usage, "no effect"},
		"sign":              {CombineOptions{Method: "ties", Density: 0.5, MajoritySign: "x"}, []CombineInput{at("plain")}, fault.Usage, "total or frequency"},
		"sign of svd":       {CombineOptions{Method: "svd", MajoritySign: "total"}, []CombineInput{at("plain")}, fault.Usage, "no effect"},
	} {
		_, err := Combine(c.in, c.o)
		if fault.ClassOf(err) != c.class || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want class %v and %q", name, err, c.class, c.want)
		}
	}
}

// made writes a small adapter; keys go into its configuration.
func made(t *testing.T, keys string, ts ...formatstest.Tensor) string {
	t.Helper()
	dir := t.TempDir()
	formatstest.Write(t, dir, "", ts...)
	if err := os.Rename(filepath.Join(dir, "model.safetensors"), filepath.Join(dir, peft.WeightsName)); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"peft_type": "LORA", "r": 1, "lora_alpha": 1%s}`, keys)
	if err := os.WriteFile(filepath.Join(dir, peft.ConfigName), []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tensor(name string, shape []int64, v ...float32) formatstest.Tensor {
	return formatstest.Tensor{Name: name, DType: "F32", Shape: shape, Data: floats{shape, v}.Data()}
}

// What two adapters put in the place of one tensor must be the same, and a layer that one
// replaces is none that the other adds to.
func TestCombineConflicts(t *testing.T) {
	a, b := tensor("q.lora_A.weight", []int64{1, 2}, 1, 2), tensor("q.lora_B.weight", []int64{2, 1}, 3, 4)
	save := func(x float32) string {
		return made(t, `, "modules_to_save": ["head"]`, a, b, tensor("head.weight", []int64{1, 2}, x, 2))
	}
	run := func(ws [2]float64, dirs ...string) error {
		var in []CombineInput
		for i, d := range dirs {
			in = append(in, CombineInput{adapter(t, d), ws[i]})
		}
		p, err := Combine(in, CombineOptions{Method: "cat"})
		if err == nil {
			_, err = p.Run(t.Context(), filepath.Join(t.TempDir(), "out"))
		}
		return err
	}
	infinite := float32(math.Inf(1))
	for name, c := range map[string]struct {
		ws   [2]float64
		dirs []string
		want string
	}{
		"same":      {[2]float64{0.25, 0.75}, []string{save(1), save(1)}, ""},
		"different": {[2]float64{0.25, 0.75}, []string{save(1), save(2)}, "different values in the place of the base's"},
		"twice":     {[2]float64{1, 1}, []string{save(1), save(1)}, "counts 2"},
		"added to":  {[2]float64{1, 1}, []string{save(1), made(t, "", tensor("head.lora_A.weight", []int64{1, 2}, 1, 2), tensor("head.lora_B.weight", []int64{1, 1}, 1))}, "replaces the weight to which"},
		"shape":     {[2]float64{1, 1}, []string{save(1), made(t, "", tensor("q.lora_A.weight", []int64{1, 1}, 1), b)}, "for a layer of 2 outputs and 2 inputs"},
		"infinite":  {[2]float64{1, 1}, []string{save(1), made(t, "", tensor("q.lora_A.weight", []int64{1, 2}, infinite, 1), b)}, "value at 0 is +Inf"},
		"task":      {[2]float64{1, 1}, []string{made(t, `, "task_type": "CAUSAL_LM"`, a, b), made(t, `, "task_type": "SEQ_CLS"`, a, b)}, "task_type"},
		"one bias":  {[2]float64{1, 1}, []string{made(t, `, "lora_bias": true`, a, b, tensor("q.lora_B.bias", []int64{2}, 1, 2)), made(t, "", tensor("k.lora_A.weight", []int64{1, 2}, 1, 2), tensor("k.lora_B.weight", []int64{1, 1}, 1))}, "this one has none"},
	} {
		err := run(c.ws, c.dirs...)
		if c.want == "" && err != nil || c.want != "" && (err == nil || fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	one, two := save(1), save(1)
	for i, d := range []string{one, two} {
		text := fmt.Sprintf(`{"schema": %q, "base": [{"tensor": "q.weight", "blake3": %q}]}`, peft.RecordSchema, strings.Repeat(fmt.Sprint(i), 64))
		if err := os.WriteFile(filepath.Join(d, peft.RecordName), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := run([2]float64{0.5, 0.5}, one, two); err == nil || !strings.Contains(err.Error(), "records BLAKE3") {
		t.Errorf("other bases: %v", err)
	}
}

// Every adapter has masks of its own, and every part of a layer.
func TestCombineMasks(t *testing.T) {
	a := adapter(t, filepath.Join(fixtures.Dir(t), "adapters", "comb-a"))
	_, got := combineAll(t, CombineOptions{Method: "dare_linear", Density: 0.5, Seed: 9}, CombineInput{a, 1}, CombineInput{a, 1})
	for _, pick := range []func(*peft.Target) hf.Tensor{func(x *peft.Target) hf.Tensor { return x.A }, func(x *peft.Target) hf.Tensor { return x.B }} {
		v, was := floatsIn(t, pick(&got.Targets()[0])), floatsIn(t, pick(&a.Targets()[0]))
		var count [3]int // kept by none, one and both, each counting sqrt(2) / 0.5
		for j := range v {
			if was[j] != 0 {
				count[int(math.Round(float64(v[j]/was[j])/(2*math.Sqrt2)))]++
			}
		}
		for k, p := range []float64{0.25, 0.5, 0.25} {
			if n := float64(len(v)); math.Abs(float64(count[k])-p*n) > 5*math.Sqrt(n*p*(1-p)) {
				t.Errorf("%v of %d elements were kept by none, one and both", count, len(v))
			}
		}
	}
}
