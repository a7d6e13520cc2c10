package model_test

import (
	"context"
	"os"
	"runtime"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/model"
)

// BenchmarkForward takes 512 tokens through two layers of the shape of Llama-3.2-1B, reading
// the weights included, or through the model NF4CONV_BENCH_MODEL, and reports tokens and
// floating-point operations of the linear layers per second. Page cache warm.
func BenchmarkForward(b *testing.B) {
	dir := os.Getenv("NF4CONV_BENCH_MODEL")
	if dir == "" {
		dir = fixtures.Synthetic(b, b.TempDir(), fixtures.Spec{Layers: 2, Hidden: 2048, Intermediate: 8192, Heads: 32, KVHeads: 8, Vocab: 4096, Seed: 1})
	}
	m := open(b, dir, model.Options{Threads: runtime.GOMAXPROCS(0)})
	s := m.Spec()
	seq := model.Sequence{IDs: make([]int, 512)}
	for i := range seq.IDs {
		seq.IDs[i] = i * 7 % s.Vocab
	}
	flops := 0.0
	for _, l := range s.Layers {
		for _, w := range append([]model.Linear{l.Attn.Out, *l.MLP.Gate, l.MLP.Up, l.MLP.Down}, l.Attn.Inputs...) {
			flops += 2 * float64(w.In) * float64(w.Out)
		}
	}
	b.Run("layers", func(b *testing.B) {
		for b.Loop() {
			if _, err := model.Forward(context.Background(), m, []model.Sequence{seq}, model.RunOptions{}, nil); err != nil {
				b.Fatal(err)
			}
		}
		rate := float64(len(seq.IDs)) * float64(b.N) / b.Elapsed().Seconds()
		b.ReportMetric(rate, "tokens/s")
		b.ReportMetric(rate*flops/1e9, "GFLOP/s")
	})
	b.Run("head", func(b *testing.B) {
		h := make([]float32, len(seq.IDs)*m.Width())
		for b.Loop() {
			p, err := m.Project()
			if err != nil {
				b.Fatal(err)
			}
			if err := p.EachLogits(h, 64<<20, func(int, []float32) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
		rate := float64(len(seq.IDs)) * float64(b.N) / b.Elapsed().Seconds()
		b.ReportMetric(rate, "tokens/s")
		b.ReportMetric(rate*2*float64(m.Width())*float64(s.Vocab)/1e9, "GFLOP/s")
	})
}
