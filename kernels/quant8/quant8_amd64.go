//go:build !purego

package quant8

import (
	"slices"

	"github.com/nf4conv/nf4conv/kernels"
)

//go:generate go run -C ../_asm ./quant8 -out ../quant8/quant8_amd64.s

// callElems is how many elements one call of assembly goes through: it cannot be
// preempted, so that a call takes some tens of microseconds.
const callElems = 1 << 15

// searchSteps are the midpoints in the order of a binary search: first the one to compare
// with at the beginning, then the two that may come next, and so on; a step begins at a
// multiple of 16.
type searchSteps struct {
	sorted bool
	rows   [304]float32
}

func (b *Codebook) searchSteps() *searchSteps {
	if s := b.steps.Load(); s != nil {
		return s
	}
	s := &searchSteps{sorted: slices.IsSorted(b.Midpoints[:]) && b.Midpoints[0] == b.Midpoints[0]}
	row := 0
	for step := range 8 {
		for state := range 1 << step {
			s.rows[16*row+state] = b.Midpoints[state<<(8-step)+1<<(7-step)-1]
		}
		row += max(1, 1<<step/16)
	}
	for i := range 16 { // the first is compared with as it stands
		s.rows[i] = s.rows[0]
	}
	b.steps.Store(s) // perhaps made by two threads at once: the results are equal
	return s
}

func sumGroups(partial []float64, x []float32) {
	if kernels.Features.AVX2 {
		for whole := len(x) / SumGroup; whole > 0; {
			n := min(whole, callElems/SumGroup)
			if kernels.Features.AVX512 {
				sumAVX512(&partial[0], &x[0], n)
			} else {
				sumAVX2(&partial[0], &x[0], n)
			}
			partial, x, whole = partial[n:], x[n*SumGroup:], whole-n
		}
	}
	sumGroupsGeneric(partial, x)
}

// quantize gives whole groups of whole vectors to assembly. It stops before a group that is
// not finite, which goes the generic way, like a short last group.
func quantize(codes []byte, scales, x []float32, offset float32, groupSize int, book *Codebook) {
	t, s := book.table(), book.searchSteps()
	if !kernels.Features.AVX2 || groupSize%32 != 0 || !t.exact || !s.sorted {
		quantizeGeneric(codes, scales, x, offset, groupSize, book)
		return
	}
	for len(x) >= groupSize {
		n := min(len(x)/groupSize, max(1, callElems/groupSize))
		var done int
		if kernels.Features.AVX512 {
			done = quantizeAVX512(&codes[0], &scales[0], &x[0], n, groupSize, offset, &s.rows)
		} else {
			done = quantizeAVX2(&codes[0], &scales[0], &x[0], n, groupSize, offset, &t.midpoint, &t.below)
		}
		if done < n {
			lo, hi := done*groupSize, (done+1)*groupSize
			quantizeGeneric(codes[lo:hi], scales[done:done+1], x[lo:hi], offset, groupSize, book)
			done++
		}
		codes, scales, x = codes[done*groupSize:], scales[done:], x[done*groupSize:]
	}
	quantizeGeneric(codes, scales, x, offset, groupSize, book)
}

func dequantize(x []float32, codes []byte, scales []float32, levels *[256]float32, offset float32, groupSize int) {
	if kernels.Features.AVX2 && groupSize%32 == 0 {
		for len(x) >= groupSize {
			n := min(len(x)/groupSize, max(1, callElems/groupSize))
			if kernels.Features.AVX512 {
				dequantizeAVX512(&x[0], &codes[0], &scales[0], n, groupSize, levels, offset)
			} else {
				dequantizeAVX2(&x[0], &codes[0], &scales[0], n, groupSize, levels, offset)
			}
			x, codes, scales = x[n*groupSize:], codes[n*groupSize:], scales[n:]
		}
	}
	dequantizeGeneric(x, codes, scales, levels, offset, groupSize)
}
