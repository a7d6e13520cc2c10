// Command quant4 writes the assembly of package kernels/quant4.
package main

import . "github.com/mmcloughlin/avo/build" //revive:disable-line:dot-imports avo programs read as assembly only so

func main() {
	ConstraintExpr("!purego")
	makeWordConsts()
	makeFloatConsts()
	for _, f := range []halfFormat{bfloat16, float16} {
		quantizeWordsAVX2(f)
		quantizeWordsAVX512(f)
	}
	quantizeCellsAVX512()
	for _, in := range []reader{float32Reader, float16Reader} {
		quantizeFloatAVX2(in)
		quantizeFloatAVX512(in)
	}
	makeDequantizeConsts()
	dequantizeHalfAVX2("BF16", true)
	dequantizeHalfAVX512("BF16", true)
	dequantizeHalfAVX2("F16", false)
	dequantizeHalfAVX512("F16", false)
	dequantizeF32AVX2()
	dequantizeF32AVX512()
	for _, in := range []reader{bfloat16Reader, float16Reader, float32Reader} {
		momentsAVX2(in)
	}
	Generate()
}
