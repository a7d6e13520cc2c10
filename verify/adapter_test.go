package verify

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/model"
)

func openAdapter(t *testing.T, name string) *peft.Adapter {
	t.Helper()
	a, err := peft.Open("../fixtures/adapters/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// TestUnmergedIsPEFT holds the logits with an adapter that is not merged to PEFT's, and
// what cannot run so to a refusal by name. Every adapter of the fixtures runs or is refused.
func TestUnmergedIsPEFT(t *testing.T) {
	refused := map[string]string{
		"dora": "magnitude of DoRA", "gpt2-dora": "magnitude of DoRA", "lora-bias": "bias of a factor", "bias-all": "replaces one", "bias-lora-only": "replaces one",
		"embeddings": "embed", "embeddings-tied": "embed", "head-tied": "lm_head", "modules-to-save": "replaces one", "tokens": "replaces rows", "tokens-dict": "replaces rows",
		"moe-parameters": "experts", "moe-one-parameter": "experts",
	}
	const golden = " plain rslora patterns regex layers all-linear gpt2 float-alpha "
	ran := 0
	dirs, err := filepath.Glob("../fixtures/adapters/*/adapter_config.json")
	if err != nil || len(dirs) < 25 {
		t.Fatalf("%d adapters, %v", len(dirs), err)
	}
	for _, path := range dirs {
		name := filepath.Base(filepath.Dir(path))
		path := "../fixtures/adapters/" + name + "/expected/logits.safetensors"
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile("../fixtures/adapters/" + name + "/expected.json")
			if err != nil {
				t.Fatal(err)
			}
			var expected struct {
				Base   string          `json:"base"`
				Refuse json.RawMessage `json:"refuse"`
			}
			if err := json.Unmarshal(raw, &expected); err != nil {
				t.Fatal(err)
			}
			if s := string(expected.Refuse); s != "" && s != "false" && s != "null" {
				if _, err := peft.Open("../fixtures/adapters/" + name); fault.ClassOf(err) != fault.Input {
					t.Errorf("opened: %v", err)
				}
				return
			}
			base := openModel(t, "../fixtures/"+expected.Base)
			low, err := Unmerged(base, []Adapter{{openAdapter(t, name), 1}})
			if want := refused[name]; want != "" {
				if err == nil || !strings.Contains(err.Error(), want) || fault.ClassOf(err) != fault.Input {
					t.Errorf("%v; want a refusal that says %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := model.Open(base, model.Options{Threads: 2, LowRank: low})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err == nil {
				comparePEFT(t, m, path)
				ran++
			} else if strings.Contains(golden, " "+name+" ") {
				t.Errorf("its logits are missing: %v", err)
			}
		})
	}
	if want := len(strings.Fields(golden)); ran < want {
		t.Errorf("%d adapters were compared, want at least %d", ran, want)
	}
}

func comparePEFT(t *testing.T, m *model.Model, path string) {
	t.Helper()
	ids, err := ReadIDs(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	x, ok := f.Tensor("logits")
	if !ok || x.DType != "F32" {
		t.Fatal("there are no float32 logits")
	}
	n := 1
	for _, d := range x.Shape {
		n *= int(d)
	}
	b, want := make([]byte, 4*n), make([]float32, n)
	if err := f.ReadTensorAt(b, x, 0); err != nil {
		t.Fatal(err)
	}
	cast.ToF32(want, b, kernels.F32)
	hidden, err := model.Forward(context.Background(), m, ids.Sequences, model.RunOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Project()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]float32, ids.Tokens*p.Vocab())
	if len(got) != len(want) {
		t.Fatalf("%d logits, want %d", len(got), len(want))
	}
	p.Logits(got, hidden, ids.Tokens)
	var worst, top float64
	for i := range want {
		worst, top = max(worst, math.Abs(float64(got[i]-want[i]))), max(top, math.Abs(float64(want[i])))
	}
	t.Logf("largest difference %.3g of %.3g", worst, top)
	if !(worst <= 2e-4*top) { // what the forward pass is held to against transformers
		t.Errorf("largest difference %v of %v", worst, top)
	}
}

// TestAdaptersAddUp: an adapter against itself in two halves, and with nothing.
func TestAdaptersAddUp(t *testing.T) {
	c := openModel(t, kjv)
	a := openAdapter(t, "plain")
	text, err := SampleText()
	if err != nil {
		t.Fatal(err)
	}
	ids, _, err := Tokenize(c, c, text, "sample", TextOptions{Tokens: 128})
	if err != nil {
		t.Fatal(err)
	}
	kld := func(base, candidate []Adapter) float64 {
		r, err := Run(context.Background(), c, c, Options{Stages: []string{StageLayers, StageLogits}, Text: ids, OfBase: base, Adapters: candidate})
		if err != nil {
			t.Fatal(err)
		}
		m, _ := r.Metric("kld.mean")
		return float64(m.Value)
	}
	if v := kld([]Adapter{{a, 1}}, []Adapter{{a, 0.25}, {a, 0.75}}); !(math.Abs(v) < 1e-6) {
		t.Errorf("in two parts: divergence %v", v)
	}
	if v := kld(nil, []Adapter{{a, 1}}); !(v > 1e-3) {
		t.Errorf("against nothing: divergence %v", v)
	}
}
