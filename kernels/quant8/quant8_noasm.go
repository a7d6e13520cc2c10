//go:build !amd64 || purego

package quant8

type searchSteps struct{}

func sumGroups(partial []float64, x []float32) { sumGroupsGeneric(partial, x) }

func quantize(codes []byte, scales, x []float32, offset float32, groupSize int, book *Codebook) {
	quantizeGeneric(codes, scales, x, offset, groupSize, book)
}

func dequantize(x []float32, codes []byte, scales []float32, levels *[256]float32, offset float32, groupSize int) {
	dequantizeGeneric(x, codes, scales, levels, offset, groupSize)
}
