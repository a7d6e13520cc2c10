// Package compare finds the differences between two checkpoints, tensor by tensor,
// whatever each is stored in. Values are streamed in chunks of a fixed size and summed in
// a fixed order, so that the figures do not depend on the number of workers.
package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/weights"
)

// Schema names the JSON form of a [Result].
const Schema = "nf4conv.diff/1"

// Result is every difference found.
type Result struct {
	Schema  string   `json:"schema"`
	A       Side     `json:"a"`
	B       Side     `json:"b"`
	Equal   bool     `json:"equal"`   // no difference at all
	Tensors []Tensor `json:"tensors"` // those that differ, largest relative error first, then by name
	OnlyA   []string `json:"only_a"`
	OnlyB   []string `json:"only_b"`
	Same    int      `json:"same"`   // tensors with equal values
	Config  []string `json:"config"` // top-level keys of config.json that differ
	// RelError is ||A-B|| / ||A|| over all tensors that both have and that are numbers.
	RelError float64 `json:"rel_error"`
}

// Side is one of the two checkpoints.
type Side struct {
	Path    string `json:"path"`
	Scheme  string `json:"scheme"` // none, bitsandbytes, fp8 or mxfp4
	Tensors int    `json:"tensors"`
}

// Tensor is a logical tensor that both sides have and that is not the same in both.
type Tensor struct {
	Name     string  `json:"name"`
	StorageA string  `json:"storage_a"`
	StorageB string  `json:"storage_b"`
	ShapeA   []int64 `json:"shape_a"`
	ShapeB   []int64 `json:"shape_b"`
	// Kind is "shape", "bytes" (values that are not read as numbers) or "values". Two NaN are
	// equal, and so are two infinities of one sign; figures that such values on one side only
	// make infinite or no number are the largest float64.
	Kind      string  `json:"kind"`
	Different int64   `json:"different"`  // elements whose values differ
	MaxAbs    float64 `json:"max_abs"`    // largest |a-b|
	RelError  float64 `json:"rel_error"`  // ||a-b|| / ||a||
	Cosine    float64 `json:"cosine"`     // <a,b> / (||a|| ||b||)
	SQNR      float64 `json:"sqnr_db"`    // 10 log10(||a||^2 / ||a-b||^2)
	Gain      float64 `json:"gain"`       // <a,b> / <a,a>
	Transpose bool    `json:"transposed"` // one side holds the transpose (Conv1D)

	diff2, norm2 float64
	equal        bool
}

// chunk is the number of values compared at a time.
const chunk = 1 << 16

// Checkpoints compares a and b on the given number of workers.
func Checkpoints(ctx context.Context, a, b *hf.Checkpoint, workers int) (*Result, error) {
	p, err := Match(a, b)
	if err != nil {
		return nil, err
	}
	r := &Result{
		Schema: Schema, OnlyA: p.OnlyA, OnlyB: p.OnlyB, Tensors: []Tensor{}, Config: configKeys(a.Config(), b.Config()),
		A: p.A, B: p.B,
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, workers))
	found := make([]*Tensor, len(p.Pairs))
	for i := range p.Pairs {
		g.Go(func() error {
			t, err := p.Pairs[i].Compare(ctx)
			found[i] = t
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	r.collect(found)
	return r, nil
}

// collect sums up in source order.
func (r *Result) collect(found []*Tensor) {
	var diff2, norm2 float64
	for _, t := range found {
		switch {
		case t == nil:
		case t.equal:
			r.Same++
			norm2 += t.norm2
		default:
			r.Tensors = append(r.Tensors, *t)
			diff2 += t.diff2
			norm2 += t.norm2
		}
	}
	r.RelError = ratio(math.Sqrt(diff2), math.Sqrt(norm2))
	sort.SliceStable(r.Tensors, func(i, j int) bool {
		if r.Tensors[i].RelError != r.Tensors[j].RelError {
			return r.Tensors[i].RelError > r.Tensors[j].RelError
		}
		return r.Tensors[i].Name < r.Tensors[j].Name
	})
	r.Equal = len(r.Tensors)+len(r.OnlyA)+len(r.OnlyB)+len(r.Config) == 0
}

// configKeys are the top-level keys whose text differs.
func configKeys(a, b *hf.Config) []string {
	out := []string{}
	keys := map[string]bool{}
	for _, c := range []*hf.Config{a, b} {
		if c != nil {
			for _, k := range c.Keys() {
				keys[k] = true
			}
		}
	}
	for k := range keys {
		if !bytes.Equal(compact(a, k), compact(b, k)) {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func compact(c *hf.Config, key string) []byte {
	if c == nil {
		return nil
	}
	raw, ok := c.Raw(key)
	if !ok {
		return nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil { // it was parsed
		panic("compare: internal error: " + err.Error())
	}
	return b.Bytes()
}

// isNumbers tells whether ReadF32 works on a tensor.
func isNumbers(t weights.Tensor) bool {
	_, plain := t.Sources()[0].DType.Float()
	return plain || t.Storage() != string(t.Sources()[0].DType)
}

func compareBytes(a, b weights.Tensor, t *Tensor) error {
	x, y := a.Sources()[0], b.Sources()[0]
	if x.DType != y.DType || x.Bytes() != y.Bytes() { // elements of an unknown dtype may have any size
		return nil
	}
	const piece = 1 << 18
	p, q := make([]byte, piece), make([]byte, piece)
	for off := int64(0); off < x.Bytes(); off += piece {
		n := min(piece, x.Bytes()-off)
		if err := x.ReadAt(p[:n], off); err != nil {
			return err
		}
		if err := y.ReadAt(q[:n], off); err != nil {
			return err
		}
		for i := range n {
			if p[i] != q[i] {
				t.Different++
			}
		}
	}
	t.equal = t.Different == 0
	return nil
}

// values compares numbers, chunk by chunk.
func (t *Tensor) values(ctx context.Context, a, b weights.Tensor) error {
	n := int64(1)
	for _, d := range a.Shape() {
		n *= d
	}
	x, y := make([]float32, min(chunk, n)), make([]float32, min(chunk, n))
	var normB2, dot float64
	for off := int64(0); off < n; off += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(chunk, n-off)
		if err := a.ReadF32(x[:k], off); err != nil {
			return fmt.Errorf("comparing %q: %w", t.Name, err)
		}
		if err := b.ReadF32(y[:k], off); err != nil {
			return fmt.Errorf("comparing %q: %w", t.Name, err)
		}
		var d2, a2, b2, ab float64
		for i := range k {
			u, v := float64(x[i]), float64(y[i])
			d := u - v
			if u == v || u != u && v != v {
				if d != 0 {
					continue // both NaN, or the same infinity: equal, and in no sum
				}
			} else {
				t.Different++
			}
			t.MaxAbs = max(t.MaxAbs, math.Abs(d))
			d2 += float64(d * d)
			a2 += float64(u * u)
			b2 += float64(v * v)
			ab += float64(u * v)
		}
		t.diff2, t.norm2, normB2, dot = t.diff2+d2, t.norm2+a2, normB2+b2, dot+ab
	}
	t.equal = t.Different == 0
	t.RelError = ratio(math.Sqrt(t.diff2), math.Sqrt(t.norm2))
	t.Cosine = ratio(dot, math.Sqrt(t.norm2)*math.Sqrt(normB2))
	t.Gain = ratio(dot, t.norm2)
	switch {
	case finite(t.diff2) != t.diff2 || finite(t.norm2) != t.norm2:
		t.SQNR = -math.MaxFloat64
	case t.diff2 > 0 && t.norm2 > 0:
		t.SQNR = 10 * math.Log10(t.norm2/t.diff2)
	}
	t.MaxAbs = finite(t.MaxAbs)
	return nil
}

// ratio is a/b, and 0 where that is no number: JSON has none for it.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return finite(a / b)
}

// finite is v, or the largest number of its sign where v is infinite or none.
func finite(v float64) float64 {
	switch {
	case math.IsInf(v, -1):
		return -math.MaxFloat64
	case math.IsNaN(v) || math.IsInf(v, 1):
		return math.MaxFloat64
	}
	return v
}
