//go:build !purego

package quant4

import (
	"unsafe"

	"github.com/nf4conv/nf4conv/kernels"
)

//go:generate go run -C ../_asm ./quant4 -out ../quant4/quant4_amd64.s

// callElems is how many elements one call of assembly goes through: it cannot be
// preempted, so that a call takes some tens of microseconds.
const callElems = 1 << 17

// batchElems is how many elements the assembly finds the scales of before it turns back to
// find codes: few enough to stay in the first-level cache.
const batchElems = 1 << 10

// quantize gives whole blocks of whole vectors to assembly. Blocks that are out of its range
// go the generic way, like the short last block.
func quantize(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *Codebook) {
	if !kernels.Features.AVX2 || blockSize%32 != 0 {
		quantizeGeneric(packed, absmax, src, from, blockSize, book)
		return
	}
	t := book.searchTable()
	size := from.Size() * blockSize
	for len(src) >= size {
		n := min(len(src)/size, max(1, callElems/blockSize))
		done := quantizeWords(packed, absmax, src, from, n, blockSize, t)
		if done < n {
			// Of binary16, blocks of small numbers; of float32, all.
			done += quantizeFloats(packed[done*blockSize/2:], absmax[done:], src[done*size:], from, n-done, blockSize, t)
		}
		if done < n {
			lo, hi := done*blockSize/2, (done+1)*blockSize/2
			quantizeGeneric(packed[lo:hi], absmax[done:done+1], src[done*size:(done+1)*size], from, blockSize, book)
			done++
		}
		packed, absmax, src = packed[done*blockSize/2:], absmax[done:], src[done*size:]
	}
	quantizeGeneric(packed, absmax, src, from, blockSize, book)
}

// quantizeWords does up to n blocks of a 16-bit format and returns how many.
func quantizeWords(packed []byte, absmax []float32, src []byte, from kernels.Float, n, blockSize int, t *searchTable) int {
	p, a, x, batch := &packed[0], &absmax[0], &src[0], max(1, batchElems/blockSize)
	switch {
	case from == kernels.BF16 && kernels.Features.AVX512 && t.cells != nil:
		return quantizeCellsAVX512(p, a, x, n, blockSize, batch, t.bf16.least, t.bf16.span, t.cells)
	case from == kernels.BF16 && kernels.Features.AVX512 && t.bf16 != nil:
		return quantizeBF16AVX512(p, a, x, n, blockSize, batch, t.bf16.least, t.bf16.span, &t.bf16.rows[0], &t.codes)
	case from == kernels.BF16 && t.bf16 != nil:
		return quantizeBF16AVX2(p, a, x, n, blockSize, batch, t.bf16.least, t.bf16.span, &t.bf16.rows[0], &t.codes)
	case from == kernels.F16 && kernels.Features.AVX512 && t.f16 != nil:
		return quantizeF16AVX512(p, a, x, n, blockSize, batch, t.f16.least, t.f16.span, &t.f16.rows[0], &t.codes)
	case from == kernels.F16 && t.f16 != nil:
		return quantizeF16AVX2(p, a, x, n, blockSize, batch, t.f16.least, t.f16.span, &t.f16.rows[0], &t.codes)
	}
	return 0
}

// quantizeFloats does up to n blocks of binary16 or float32 and returns how many. Of
// binary16 it does one, for the next may be one for quantizeWords, which is faster.
func quantizeFloats(packed []byte, absmax []float32, src []byte, from kernels.Float, n, blockSize int, t *searchTable) int {
	if !t.sorted {
		return 0
	}
	p, a, x, batch := &packed[0], &absmax[0], &src[0], max(1, batchElems/blockSize)
	switch {
	case from == kernels.F16 && kernels.Features.AVX512:
		return quantizeFloatsF16AVX512(p, a, x, 1, blockSize, batch, &t.steps, &t.codes)
	case from == kernels.F16:
		return quantizeFloatsF16AVX2(p, a, x, 1, blockSize, batch, &t.steps, &t.codes)
	case from == kernels.F32 && kernels.Features.AVX512:
		return quantizeFloatsF32AVX512(p, a, x, n, blockSize, batch, &t.steps, &t.codes)
	case from == kernels.F32:
		return quantizeFloatsF32AVX2(p, a, x, n, blockSize, batch, &t.steps, &t.codes)
	}
	return 0
}

// dequantize does for dequantizeGeneric what quantize does.
func dequantize(dst []byte, to kernels.Float, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	size := to.Size() * blockSize
	if !kernels.Features.AVX2 || blockSize%32 != 0 || !finiteLevels(book) {
		dequantizeGeneric(dst, to, packed, absmax, blockSize, book)
		return
	}
	for len(dst) >= size {
		n := min(len(dst)/size, max(1, callElems/blockSize))
		done := dequantizeBlocks(&dst[0], to, &packed[0], &absmax[0], n, blockSize, &book.Levels)
		if done < n {
			lo, hi := done*blockSize/2, (done+1)*blockSize/2
			dequantizeGeneric(dst[done*size:(done+1)*size], to, packed[lo:hi], absmax[done:done+1], blockSize, book)
			done++
		}
		dst, packed, absmax = dst[done*size:], packed[done*blockSize/2:], absmax[done:]
	}
	dequantizeGeneric(dst, to, packed, absmax, blockSize, book)
}

// dequantizeF32 is dequantize into memory of another type.
func dequantizeF32(dst []float32, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	switch {
	case !kernels.Features.AVX2:
		dequantizeF32Generic(dst, packed, absmax, blockSize, book)
	case len(dst) > 0:
		dequantize(unsafe.Slice((*byte)(unsafe.Pointer(&dst[0])), 4*len(dst)), kernels.F32, packed, absmax, blockSize, book)
	}
}

// finiteLevels says whether no product of a level with a finite scale is NaN, which the
// assembly would not round as the generic code does.
func finiteLevels(book *Codebook) bool {
	for _, v := range &book.Levels {
		if v-v != 0 {
			return false
		}
	}
	return true
}

// dequantizeBlocks does up to n blocks and returns how many.
func dequantizeBlocks(dst *byte, to kernels.Float, packed *byte, absmax *float32, n, blockSize int, levels *[16]float32) int {
	switch {
	case to == kernels.BF16 && kernels.Features.AVX512:
		return dequantizeBF16AVX512(dst, packed, absmax, n, blockSize, levels)
	case to == kernels.BF16:
		return dequantizeBF16AVX2(dst, packed, absmax, n, blockSize, levels)
	case to == kernels.F16 && kernels.Features.AVX512:
		return dequantizeF16AVX512(dst, packed, absmax, n, blockSize, levels)
	case to == kernels.F16:
		return dequantizeF16AVX2(dst, packed, absmax, n, blockSize, levels)
	case kernels.Features.AVX512:
		return dequantizeF32AVX512(dst, packed, absmax, n, blockSize, levels)
	}
	return dequantizeF32AVX2(dst, packed, absmax, n, blockSize, levels)
}

func blockMoments(src []byte, from kernels.Float, packed []byte, book *Codebook) Moments {
	const group = 16 // elements at a time
	n := len(src) / from.Size()
	if !kernels.Features.AVX2 || n == 0 || n%group != 0 {
		return blockMomentsGeneric(src, from, packed, book)
	}
	var sums [3]float64
	switch from {
	case kernels.BF16:
		momentsBF16AVX2(&src[0], &packed[0], n/group, &book.Levels, &sums)
	case kernels.F16:
		momentsF16AVX2(&src[0], &packed[0], n/group, &book.Levels, &sums)
	default:
		momentsF32AVX2(&src[0], &packed[0], n/group, &book.Levels, &sums)
	}
	return Moments{sums[0], sums[1], sums[2]}
}
