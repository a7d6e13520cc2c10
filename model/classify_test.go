package model

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPicked: which tokens a head looks at.
func TestPicked(t *testing.T) {
	seqs := []Sequence{{IDs: []int{5, 6, 7}}, {IDs: []int{2}}, {IDs: []int{5, 2, 8, 2, 2}}}
	for _, c := range []struct {
		pick Pick
		pad  int
		want []int
	}{
		{AllTokens, -1, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{FirstToken, -1, []int{0, 3, 4}},
		{LastToken, -1, []int{2, 3, 8}},
		{LastToken, 2, []int{2, 3, 6}}, // of padding alone, the first
	} {
		if diff := cmp.Diff(c.want, (&Head{Pick: c.pick, Pad: c.pad}).Picked(seqs)); diff != "" {
			t.Errorf("pick %v, padding %d: %s", c.pick, c.pad, diff)
		}
	}
}

// TestSparseMixer: by hand. Scores within a fifth of the largest count, relative to the
// larger of it and their own magnitude.
func TestSparseMixer(t *testing.T) {
	m := &MoE{TopK: 2, Jitter: 0.1}
	e := math.Exp
	for _, c := range []struct {
		scores []float32
		want   map[int]float64
	}{
		{[]float32{1, 2, 1.7, -3}, map[int]float64{1: 1 / (1 + e(-0.3)), 2: 1}},
		{[]float32{1.9, 2, 1.7, 1.5}, map[int]float64{1: 1 / (1 + e(-0.1) + e(-0.3)), 0: 1 / (1 + e(-0.2))}},
		{[]float32{-1, -1.05, -9}, map[int]float64{0: 1 / (1 + e(-0.05)), 1: 1}}, // (-1.05+9)/9 is more than 0.2
		{[]float32{3, 3, 3}, map[int]float64{0: 1. / 3, 1: 1. / 2}},
	} {
		got := map[int]float64{}
		m.sparseMixer(c.scores, func(expert int, w float32) { got[expert] = float64(w) })
		for k, w := range c.want {
			if math.Abs(got[k]-w) > 1e-6 || len(got) != 2 {
				t.Errorf("%v: %v, want %v", c.scores, got, c.want)
			}
		}
	}
}
