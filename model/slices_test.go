package model_test

import (
	"context"
	"os"
	"testing"

	"github.com/nf4conv/nf4conv/model"
)

// TestSlices: the logits of parts of the vocabulary are those of the whole, to the bit, with a
// transform (bert, roberta), a bias, tied embeddings, a softcap (gemma2), and an adapter.
func TestSlices(t *testing.T) {
	entries, err := os.ReadDir(fixture(t, "arch"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		m := open(t, fixture(t, "arch/"+e.Name()), model.Options{Threads: 2})
		check(t, e.Name(), m)
	}
	low := func(weight string) *model.LowRank {
		if weight != "lm_head.weight" {
			return nil
		}
		s := open(t, fixture(t, "arch/qwen2"), model.Options{}).Spec()
		a := &model.LowRank{Rank: 3, A: make([]float32, 3*s.Hidden), B: make([]float32, 3*s.Vocab), Scale: 0.5}
		for i := range a.A {
			a.A[i] = float32(i%7) - 3
		}
		for i := range a.B {
			a.B[i] = float32(i%11) - 5
		}
		return a
	}
	check(t, "an adapter", open(t, fixture(t, "arch/qwen2"), model.Options{Threads: 2, LowRank: low}))
}

func check(t *testing.T, name string, m *model.Model) {
	t.Helper()
	seq := model.Sequence{IDs: make([]int, 21)}
	for i := range seq.IDs {
		seq.IDs[i] = 3 + i*5%60
	}
	h, err := model.Forward(context.Background(), m, []model.Sequence{seq}, model.RunOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Project()
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.Slices(h)
	if err != nil {
		t.Fatal(err)
	}
	n, vocab := len(seq.IDs), p.Vocab()
	whole := make([]float32, n*vocab)
	p.Logits(whole, h, n)
	part := make([]float32, n*vocab)
	for v := 0; v < vocab; v += 37 {
		k := min(37, vocab-v)
		if err := s.Load(v, v+k); err != nil {
			t.Fatal(err)
		}
		for first := 0; first < n; first += 8 {
			rows := min(8, n-first)
			s.Logits(part, first, rows)
			for i := range rows * k {
				if got, want := part[i], whole[(first+i/k)*vocab+v+i%k]; got != want {
					t.Fatalf("%s: row %d, token %d: %v, want %v", name, first+i/k, v+i%k, got, want)
				}
			}
		}
	}
}
