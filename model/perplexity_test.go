package model_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels/panel"
	"github.com/nf4conv/nf4conv/model"
	"github.com/nf4conv/nf4conv/weights"
)

// TestPerplexity: perplexity of a trained model over 40,545 tokens, and the divergence of
// its NF4 form, are those of transformers with bitsandbytes' kernels.
func TestPerplexity(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: 40,545 tokens through two models are not short")
	}
	if panel.Best().Tier == "generic" {
		t.Skip("SKIPPED: 40,545 tokens through two models take minutes without vector instructions; TestLanguageModel has some")
	}
	dir := fixture(t, "models/kjv-llama")
	b, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		PPL    float64 `json:"ppl"`
		Tokens int     `json:"scored_tokens"`
		Quant  map[string]struct {
			PPL  float64 `json:"ppl"`
			KLD  float64 `json:"mean_kld"`
			Top1 float64 `json:"same_top1"`
		} `json:"quantizations"`
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	seqs := evalSequences(t, dir)
	four, _ := quantized(t, dir, func(o *convert.QuantizeOptions) { o.DoubleQuant = false })
	base, quant := newScorer(t, dir, seqs), newScorer(t, four, seqs)
	var baseNLL, quantNLL, kld float64
	tokens, same := 0, 0
	at := 0
	for _, s := range seqs {
		p, q := base.logProbs(at, len(s.IDs)), quant.logProbs(at, len(s.IDs))
		vocab := base.head.Vocab()
		for i, next := range s.IDs[1:] {
			x, y := p[i*vocab:][:vocab], q[i*vocab:][:vocab]
			baseNLL -= x[next]
			quantNLL -= y[next]
			topX, topY := 0, 0
			for v := range x {
				kld += math.Exp(x[v]) * (x[v] - y[v])
				if x[v] > x[topX] {
					topX = v
				}
				if y[v] > y[topY] {
					topY = v
				}
			}
			if topX == topY {
				same++
			}
			tokens++
		}
		at += len(s.IDs)
	}
	n := float64(tokens)
	nf4 := want.Quant["nf4"]
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"scored tokens", n, float64(want.Tokens)},
		{"perplexity", math.Exp(baseNLL / n), want.PPL},
		{"perplexity in NF4", math.Exp(quantNLL / n), nf4.PPL},
		{"mean KLD of NF4", kld / n, nf4.KLD},
		{"same top-1 of NF4", float64(same) / n, nf4.Top1},
	} {
		t.Logf("%s: %.8g, transformers and bitsandbytes %.8g", c.what, c.got, c.want)
		if !(math.Abs(c.got-c.want) <= 5e-5*c.want) { // two of the tokens may change sides
			t.Errorf("%s: %.8g, want %.8g", c.what, c.got, c.want)
		}
	}
}

func evalSequences(t *testing.T, dir string) []model.Sequence {
	t.Helper()
	c, err := hf.Open(filepath.Join(dir, "eval_ids.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	set, err := weights.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ids, shape := tensors{c, set}.ints(t, "input_ids")
	var out []model.Sequence
	for r := range shape[0] {
		var s model.Sequence
		for _, id := range ids[r*shape[1] : (r+1)*shape[1]] {
			s.IDs = append(s.IDs, int(id))
		}
		out = append(out, s)
	}
	return out
}

// scorer has the final hidden states of all sequences.
type scorer struct {
	head   *model.Projection
	hidden []float32
	width  int
}

func newScorer(t *testing.T, dir string, seqs []model.Sequence) *scorer {
	t.Helper()
	m := open(t, dir, model.Options{Threads: 2})
	h, err := model.Forward(context.Background(), m, seqs, model.RunOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Project()
	if err != nil {
		t.Fatal(err)
	}
	return &scorer{p, h, m.Width()}
}

// logProbs are the logarithms of the probabilities after n tokens from first on.
func (s *scorer) logProbs(first, n int) []float64 {
	vocab := s.head.Vocab()
	logits := make([]float32, n*vocab)
	s.head.Logits(logits, s.hidden[first*s.width:], n)
	out := make([]float64, len(logits))
	for i := range n {
		row := logits[i*vocab:][:vocab]
		top, sum := math.Inf(-1), 0.0
		for _, v := range row {
			top = max(top, float64(v))
		}
		for _, v := range row {
			sum += math.Exp(float64(v) - top)
		}
		for j, v := range row {
			out[i*vocab+j] = float64(v) - top - math.Log(sum)
		}
	}
	return out
}
