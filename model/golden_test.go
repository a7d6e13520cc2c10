package model_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/model"
	"github.com/nf4conv/nf4conv/weights"
)

// limit is how far a value may be from transformers' in float32, relative to the largest
// one: only the order of sums differs, which makes 3e-6 at most in these models. The
// project promises 2e-4.
const limit = 2e-5

func open(t testing.TB, dir string, o model.Options) *model.Model {
	t.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	m, err := model.Open(c, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tensors reads a safetensors file of golden values.
type tensors struct {
	c   *hf.Checkpoint
	set *weights.Set
}

func golden(t testing.TB, dir string) tensors {
	t.Helper()
	c, err := hf.Open(fixtures.Golden(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	set, err := weights.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tensors{c, set}
}

func (g tensors) ints(t testing.TB, name string) ([]int64, []int64) {
	t.Helper()
	x, ok := g.c.Lookup(name)
	if !ok || x.DType != "I64" {
		t.Fatalf("golden: no int64 tensor %q", name)
	}
	b := make([]byte, x.Bytes())
	if err := x.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	v := make([]int64, len(b)/8)
	for i := range v {
		v[i] = int64(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return v, x.Shape
}

func (g tensors) floats(t testing.TB, name string) ([]float32, []int64) {
	t.Helper()
	x, ok := g.set.Lookup(name)
	if !ok {
		t.Fatalf("golden: no tensor %q", name)
	}
	n := int64(1)
	for _, d := range x.Shape() {
		n *= d
	}
	v := make([]float32, n)
	if err := x.ReadF32(v, 0); err != nil {
		t.Fatal(err)
	}
	return v, x.Shape()
}

// result is what a pass gave: hidden states per layer and logits, per token.
type result struct {
	tokens int
	hidden [][]float32
	logits []float32
}

func forward(t testing.TB, m *model.Model, seqs []model.Sequence) result {
	t.Helper()
	var r result
	for _, s := range seqs {
		r.tokens += len(s.IDs)
	}
	last, err := model.Forward(context.Background(), m, seqs, model.RunOptions{}, func(_ int, h []float32) error {
		r.hidden = append(r.hidden, append([]float32(nil), h...))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Project()
	if err != nil {
		t.Fatal(err)
	}
	err = p.EachLogits(last, 100*1024, func(_ int, l []float32) error {
		r.logits = append(r.logits, l...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// compare holds the rows of got, one per token, against those of want at [row, column].
func compare(t testing.TB, what string, got []float32, want []float32, width int, tokens []token) float64 {
	t.Helper()
	largest, worst, where := 0.0, 0.0, token{}
	for _, k := range tokens {
		for i := range width {
			g, w := float64(got[k.index*width+i]), float64(want[k.golden*width+i])
			largest = max(largest, math.Abs(w))
			if d := math.Abs(g - w); !(d <= worst) {
				worst, where = d, k
			}
		}
	}
	if !(worst <= limit*largest) {
		t.Errorf("%s: off by %.3g at row %d, column %d, largest value %.3g: expected at most %.3g", what, worst, where.row, where.column, largest, limit*largest)
	}
	return worst / largest
}

// token is a place in a packed batch and in a golden tensor.
type token struct{ index, golden, row, column int }

// tokensOf lists the tokens of a padded batch that the golden tensors, which hold the
// columns listed, have too.
func tokensOf(seqs []model.Sequence, columns []int64) []token {
	var out []token
	first := 0
	for r, s := range seqs {
		for k, c := range columns {
			if i := int(c) - s.Start; i >= 0 && i < len(s.IDs) {
				out = append(out, token{index: first + i, golden: r*len(columns) + k, row: r, column: int(c)})
			}
		}
		first += len(s.IDs)
	}
	return out
}

// batch is the padded batch of a golden file, and the columns that it has values for.
func (g tensors) batch(t testing.TB) ([]model.Sequence, []token, int) {
	t.Helper()
	ids, shape := g.ints(t, "input_ids")
	mask, _ := g.ints(t, "attention_mask")
	seqs, err := model.Padded(ids, mask, int(shape[0]), int(shape[1]))
	if err != nil {
		t.Fatal(err)
	}
	columns := make([]int64, shape[1])
	for i := range columns {
		columns[i] = int64(i)
	}
	if _, ok := g.c.Lookup("columns"); ok {
		columns, _ = g.ints(t, "columns")
	}
	return seqs, tokensOf(seqs, columns), int(shape[0]) * len(columns)
}

// TestArchitectures: the logits and every hidden state of every architecture are
// transformers'.
func TestArchitectures(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(fixtures.Dir(t), "arch", "*", "config.json"))
	if err != nil || len(dirs) < 15 {
		t.Fatalf("%d architectures: %v", len(dirs), err)
	}
	for _, config := range dirs {
		dir := filepath.Dir(config)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			g := golden(t, dir)
			m := open(t, dir, model.Options{Threads: 2})
			seqs, tokens, rows := g.batch(t)
			r := forward(t, m, seqs)
			want, shape := g.floats(t, "hidden_states")
			width := int(shape[len(shape)-1])
			if int(shape[0]) != len(r.hidden) {
				t.Fatalf("%d hidden states; expected %d", len(r.hidden), shape[0])
			}
			worst := 0.0
			for i, h := range r.hidden {
				worst = max(worst, compare(t, fmt.Sprintf("hidden state %d", i), h, want[i*rows*width:], width, tokens))
			}
			logits, shape := g.floats(t, "logits")
			width = int(shape[len(shape)-1])
			t.Logf("hidden %.2g, logits %.2g of the largest", worst, compare(t, "logits", r.logits, logits, width, tokens))
		})
	}
}
