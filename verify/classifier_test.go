package verify_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/nf4conv/nf4conv/model"
	"github.com/nf4conv/nf4conv/verify"
)

// classifier is a Qwen2 whose output matrix labels sequences.
func classifier(t testing.TB) string {
	t.Helper()
	dir, out := fixture(t, "arch/qwen2"), t.TempDir()
	b, err := os.ReadFile(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	renamed := bytes.Replace(b, []byte(`"lm_head.weight"`), []byte(`"score.weight"  `), 1)
	if bytes.Equal(b, renamed) {
		t.Fatal("there is no lm_head.weight to rename")
	}
	if err := os.WriteFile(filepath.Join(out, "model.safetensors"), renamed, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	var cfg map[string]any
	if err := json.Unmarshal(b, &cfg); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{}
	vocab, _ := cfg["vocab_size"].(float64)
	for i := range int(vocab) {
		labels[strconv.Itoa(i)] = "label " + strconv.Itoa(i)
	}
	cfg["architectures"], cfg["id2label"] = []string{"Qwen2ForSequenceClassification"}, labels
	if b, err = json.Marshal(cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestClassifier: of a classifier one token of each sequence is scored, and there is none
// that follows.
func TestClassifier(t *testing.T) {
	base := classifier(t)
	text, err := verify.NewIDs([]model.Sequence{{IDs: []int{9, 10, 11}}, {IDs: []int{30, 31}}, {IDs: []int{12, 13, 14, 15, 16}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, candidate := range []string{base, quantized(t, base, nil)} {
		r := judged(run(t, base, candidate, verify.Options{Text: text, Threads: 2}))
		found := map[string]float64{}
		for _, m := range r.Metrics {
			found[m.Name] = float64(m.Value)
		}
		if found["tokens"] != 3 {
			t.Errorf("%v tokens were scored, want 3", found["tokens"])
		}
		if _, ok := found["ppl.ratio"]; ok {
			t.Error("a classifier has a perplexity")
		}
		if same := candidate == base; same != (found["kld.max"] == 0) {
			t.Errorf("largest divergence %v; the same model: %v", found["kld.max"], same)
		}
	}
}
