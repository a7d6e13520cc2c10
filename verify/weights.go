package verify

import (
	"context"
	"fmt"
	"math"

	"golang.org/x/sync/errgroup"

	"github.com/nf4conv/nf4conv/compare"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
)

// weights is the second stage: figures of every tensor, and over all
//
//	weights.rel_error   |w-w'| / |w| over all tensors that both have
func (r *Result) weights(ctx context.Context, candidate *hf.Checkpoint, pairs *compare.Pairing, threads int) error {
	four, err := bnb.Find(candidate)
	if err != nil {
		return err
	}
	states := map[string]*bnb.QuantState{}
	for i := range four {
		states[four[i].Name] = &four[i].QuantState
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(threads)
	found := make([]*Tensor, len(pairs.Pairs))
	sums := make([][2]float64, len(pairs.Pairs))
	for i := range pairs.Pairs {
		g.Go(func() error {
			p := &pairs.Pairs[i]
			d, err := p.Compare(ctx)
			if err != nil {
				return err
			}
			found[i] = tensorOf(d)
			sums[i][0], sums[i][1] = d.Sums()
			if q := states[p.B.Name()]; q != nil && d.Kind == "values" {
				if err := found[i].fourBit(ctx, p, q); err != nil {
					return fmt.Errorf("measuring %q: %w", d.Name, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var diff2, norm2 float64
	for i, t := range found {
		r.Tensors = append(r.Tensors, *t)
		diff2 += sums[i][0]
		norm2 += sums[i][1]
	}
	r.count("weights.rel_error", math.Sqrt(diff2/norm2), int64(len(found)))
	return nil
}

// tensorOf takes over what diff measures. What cannot be compared has no numbers.
func tensorOf(d *compare.Tensor) *Tensor {
	t := &Tensor{Name: d.Name, Storage: d.StorageB, BaseStore: d.StorageA, Shape: d.ShapeB, FourBit: d.StorageB == "nf4" || d.StorageB == "fp4"}
	none := Number(math.NaN())
	t.RelError, t.SQNR, t.Cosine, t.MaxError, t.Gain = none, none, none, none, none
	t.Expected, t.ErrorRatio, t.Requantize = none, none, none
	switch {
	case d.Equal():
		t.RelError, t.MaxError, t.Cosine, t.Gain = 0, 0, 1, 1
	case d.Kind == "values":
		_, norm2 := d.Sums()
		t.RelError, t.Cosine, t.Gain, t.SQNR, t.MaxError = number(d.RelError), number(d.Cosine), number(d.Gain), number(d.SQNR), number(d.MaxAbs)
		if norm2 == 0 { // anything is infinitely far from zeros
			t.RelError, t.Gain = none, none
		}
	}
	return t
}

// number undoes what diff writes for infinities.
func number(v float64) Number {
	if math.Abs(v) == math.MaxFloat64 {
		return Number(math.NaN())
	}
	return Number(v)
}

// values is how many values are quantized at a time: whole blocks of every size.
const values = 1 << 16

// moved is the relative change of a value from which on it is another level: levels are at
// least 1/5 apart, as a share of the larger, and rounding to bfloat16 of a value, its scale and
// the value again moves it by 3/256 at most.
const moved = 1.0 / 32

// fourBit measures what a 4-bit tensor could be and whether it is one.
func (t *Tensor) fourBit(ctx context.Context, p *compare.Pair, q *bnb.QuantState) error {
	n := int64(1)
	for _, d := range t.Shape {
		n *= d
	}
	s := newQuantizer(q, int(min(n, values)))
	x := make([]float32, min(n, values))
	var diff2, norm2 float64
	var changed int64
	for off := int64(0); off < n; off += values {
		if err := ctx.Err(); err != nil {
			return err
		}
		v := x[:min(values, n-off)]
		if err := p.A.ReadF32(v, off); err != nil {
			return err
		}
		for i, y := range s.roundTrip(v) {
			a := float64(v[i])
			e := a - float64(y)
			diff2 += float64(e * e)
			norm2 += float64(a * a)
		}
		if err := p.B.ReadF32(v, off); err != nil {
			return err
		}
		for i, y := range s.roundTrip(v) {
			a, b := math.Abs(float64(v[i])), math.Abs(float64(y))
			if !(math.Abs(float64(v[i])-float64(y)) <= moved*max(a, b)) {
				changed++
			}
		}
	}
	t.Expected = Number(math.Sqrt(diff2 / norm2))
	t.ErrorRatio = t.RelError / t.Expected
	if t.RelError == 0 && diff2 == 0 {
		t.Expected, t.ErrorRatio = 0, 1
	}
	t.Requantize = Number(float64(changed) / float64(n))
	return nil
}

// quantizer quantizes and dequantizes runs of whole blocks.
type quantizer struct {
	state  *bnb.QuantState
	raw    []byte
	packed []byte
	absmax []float32
	out    []float32
}

func newQuantizer(q *bnb.QuantState, n int) *quantizer {
	return &quantizer{q, make([]byte, 4*n), make([]byte, (n+1)/2), make([]float32, (n+q.BlockSize-1)/q.BlockSize), make([]float32, n)}
}

// roundTrip is v after quantizing it, rounded to the dtype of the quant state.
func (s *quantizer) roundTrip(v []float32) []float32 {
	n, book := len(v), s.state.Type.Codebook()
	packed, absmax, out, f := s.packed[:(n+1)/2], s.absmax[:(n+s.state.BlockSize-1)/s.state.BlockSize], s.out[:n], s.state.DType
	raw := s.raw[:n*f.Size()]
	cast.FromF32(raw, v, f)
	quant4.Quantize(packed, absmax, raw, f, s.state.BlockSize, book)
	quant4.DequantizeF32(out, packed, absmax, s.state.BlockSize, book)
	if f != kernels.F32 {
		cast.FromF32(raw, out, f)
		cast.ToF32(out, raw, f)
	}
	return out
}
