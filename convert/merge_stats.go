package convert

import (
	"cmp"
	"math"
	"slices"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/lora"
	"github.com/nf4conv/nf4conv/nf4"
)

// TensorMerge is what a merge did to a tensor. Shares and norms are of a sample: every
// stride-th block of a large tensor, the whole of a small one.
type TensorMerge struct {
	Tensor   string      `json:"tensor"`
	Terms    []TermScale `json:"terms"`          // empty when rows were replaced and nothing was added
	Relative float64     `json:"relative_delta"` // |delta| / |weight|, Frobenius norms
	Changed  float64     `json:"changed"`        // share of elements that are not what they were; 0 for 4-bit
	Kept     float64     `json:"delta_kept"`     // projection of the realised change on the delta: 1 when all of it arrived
	Delta2   float64     `json:"delta_squared"`  // squared norm of the delta, of the whole tensor as the sample has it
	Zero     bool        `json:"zero,omitempty"` // every product has a factor that is all zero
}

// TermScale is an adapter's rank and scale in a tensor.
type TermScale struct {
	Adapter string  `json:"adapter"`
	Rank    int64   `json:"rank"`
	Scale   float64 `json:"scale"`
}

// MergeResult is what a merge did.
type MergeResult struct {
	Tensors   []TensorMerge `json:"tensors"` // smallest share of the delta kept first
	Kept      float64       `json:"delta_kept"`
	Unchanged int           `json:"unchanged"` // tensors that rounding left as they were
	Zero      int           `json:"zero"`      // tensors to which only zero was added
}

// mergeSample measures every stride-th block of a merged weight. Which blocks these are
// depends on the weight alone, so the figures do not depend on the schedule.
type mergeSample struct {
	work    *work
	block   int64
	stride  int64
	moments []mergeMoments

	absmax []byte // of sampled blocks, as they are stored
	nested []float32
}

// mergeMoments are sums over one block. Of a 4-bit weight the values are levels, which the
// scale of the block multiplies when it is known.
type mergeMoments struct {
	lora.Moments
	wd, qd float64 // sum of w d, sum of level d
}

// mergeSampleBytes is the memory that newMergeSample takes at most.
const mergeSampleBytes = maxSample * 64

func newMergeSample(w *work) *mergeSample {
	s := &mergeSample{work: w, block: 64}
	if w.quantize {
		s.block = int64(w.blockSize)
	}
	blocks := (w.elems + s.block - 1) / s.block
	s.stride = max(1, (blocks+maxSample-1)/maxSample)
	n := (blocks + s.stride - 1) / s.stride
	s.moments = make([]mergeMoments, n)
	if w.quantize {
		s.absmax = make([]byte, 4*n)
	}
	return s
}

// add measures what of a chunk belongs to the sample. out is what the engine made of it.
func (s *mergeSample) add(b *mergeBuffers, first int64, n int, out []byte) {
	block := first / s.block
	end := block + (int64(n)+s.block-1)/s.block
	for k := (block + s.stride - 1) / s.stride; k*s.stride < end; k++ {
		lo := (k*s.stride - block) * s.block
		hi := min(lo+s.block, int64(n))
		w, d := b.old[lo:hi], b.add[lo:hi]
		if s.work.quantize {
			s.moments[k] = levelMoments(w, d, out[lo/2:(hi+1)/2], s.work.typ)
			continue
		}
		size := int64(s.work.to.Size())
		v := b.sum[lo:hi] // no longer needed
		cast.ToF32(v, out[lo*size:hi*size], s.work.to)
		s.moments[k] = mergeMoments{Moments: lora.Measure(w, d, v)}
	}
}

func levelMoments(w, d []float32, packed []byte, t nf4.Type) mergeMoments {
	var m mergeMoments
	m.N = int64(len(w))
	levels := &t.Codebook().Levels
	for i := range w {
		code := packed[i/2] >> 4
		if i%2 == 1 {
			code = packed[i/2] & 15
		}
		w, d, q := float64(w[i]), float64(d[i]), float64(levels[code])
		m.WW += float64(w * w)
		m.DD += float64(d * d)
		m.wd += float64(w * d)
		m.qd += float64(q * d)
	}
	return m
}

// emitted takes note of the scales of sampled blocks.
func (s *mergeSample) emitted(part Part, offset int64, p []byte) {
	switch part {
	case PartAbsmax:
		size := int64(4)
		if s.work.doubleQuant {
			size = 1
		}
		for k := (offset/size + s.stride - 1) / s.stride; k*s.stride*size < offset+int64(len(p)); k++ {
			copy(s.absmax[k*size:][:size], p[k*s.stride*size-offset:])
		}
	case PartNestedAbsmax:
		x := make([]float32, len(p)/4)
		cast.ToF32(x, p, kernels.F32)
		s.nested = append(s.nested, x...)
	}
}

// scale is the scale of sampled block k as a loader computes it.
func (s *mergeSample) scale(k int, offset float32) float64 {
	var v [1]float32
	if !s.work.doubleQuant {
		cast.ToF32(v[:], s.absmax[4*k:][:4], kernels.F32)
		return float64(v[0])
	}
	group := int64(k) * s.stride / doublequant.BlockSize
	doublequant.Dequantize(v[:], s.absmax[k:k+1], s.nested[group:][:1], doublequant.Map(), offset, doublequant.BlockSize)
	return float64(v[0])
}

// result adds up. offset is the mean of the scales, with double quantization.
func (m *merging) result(w *work, offset float32) *TensorMerge {
	s := m.sample
	var sum lora.Moments
	for k := range s.moments {
		b := s.moments[k]
		if w.quantize {
			b.RD = float64(s.scale(k, offset)*b.qd) - b.wd
		}
		sum.Add(b.Moments)
	}
	t := &TensorMerge{
		Tensor: w.job.Name, Terms: []TermScale{}, Relative: sum.Relative(), Changed: sum.ChangedShare(), Kept: sum.Kept(),
		Delta2: sum.DD * float64(w.elems) / float64(max(sum.N, 1)), Zero: m.rows == nil && m.lora.Zero(),
	}
	if m.work.add != nil {
		for _, x := range m.work.add.Terms {
			t.Terms = append(t.Terms, TermScale{Adapter: x.Adapter, Rank: x.Rank, Scale: x.Scale})
		}
	}
	return t
}

// checkMerged refuses a merge that changed nothing, and one that lost too much.
func (r *runner) checkMerged(res *Result) error {
	if r.plan.Merge == nil {
		return nil
	}
	out := &MergeResult{Tensors: []TensorMerge{}}
	var kept, total float64
	replaced := 0
	for i := range r.plan.Jobs {
		j := &r.plan.Jobs[i]
		t := r.records[i].Merge
		if t == nil {
			if j.replaced {
				replaced++
			}
			continue
		}
		out.Tensors = append(out.Tensors, *t)
		kept += t.Kept * t.Delta2
		total += t.Delta2
		switch {
		case t.Zero:
			out.Zero++
		case !j.Quantized() && !j.replaced && r.records[i].Source[0] == r.records[i].Outputs[0]:
			out.Unchanged++
		}
	}
	if out.Kept = 1; total > 0 {
		out.Kept = kept / total
	}
	slices.SortStableFunc(out.Tensors, func(a, b TensorMerge) int { return cmp.Compare(a.Kept, b.Kept) })
	res.Merge = out
	if out.Zero+out.Unchanged == len(out.Tensors) && replaced == 0 {
		return fault.WithHint(
			fault.Inputf("merging into %q: nothing changed: of %d tensors, %d had only zero added and %d lost all of it to rounding", r.plan.src.Path(), len(out.Tensors), out.Zero, out.Unchanged),
			"an adapter that was never trained has zeros in lora_B; one with a small delta needs a base in float32")
	}
	if least := r.plan.minKept; least > 0 {
		for _, t := range out.Tensors {
			if !t.Zero && (t.Kept < least || math.IsNaN(t.Kept)) {
				return fault.WithHint(
					fault.Gatef("merging into %q: tensor %q keeps %.4f of its delta, --min-delta-kept asks for %.4f", r.plan.src.Path(), t.Tensor, t.Kept, least),
					"what is done is kept: the same command with a lower threshold, or without one, finishes at once")
			}
		}
	}
	return nil
}
