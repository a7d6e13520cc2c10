//go:build !amd64 || purego

package quant4

import "github.com/nf4conv/nf4conv/kernels"

type searchTable struct{}

func quantize(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *Codebook) {
	quantizeGeneric(packed, absmax, src, from, blockSize, book)
}

func dequantize(dst []byte, to kernels.Float, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	dequantizeGeneric(dst, to, packed, absmax, blockSize, book)
}

func dequantizeF32(dst []float32, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	dequantizeF32Generic(dst, packed, absmax, blockSize, book)
}

func blockMoments(src []byte, from kernels.Float, packed []byte, book *Codebook) Moments {
	return blockMomentsGeneric(src, from, packed, book)
}
