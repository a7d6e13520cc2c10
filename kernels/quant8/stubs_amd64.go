//go:build !purego

package quant8

// sumAVX2 works like sumGroupsGeneric on whole groups, at least one.
//
//go:noescape
func sumAVX2(partial *float64, x *float32, groups int)

// sumAVX512 works like sumAVX2.
//
//go:noescape
func sumAVX512(partial *float64, x *float32, groups int)

// quantizeAVX2 works like quantizeGeneric on whole groups, at least one, of a multiple of 32
// elements; midpoint and below are those of an exact cellTable. It stops before a group
// that is not finite and returns the number of groups before it.
//
//go:noescape
func quantizeAVX2(codes *byte, scales, x *float32, groups, groupSize int, offset float32, midpoint *[3200]float32, below *[3200]uint32) int

// quantizeAVX512 works like quantizeAVX2, for midpoints that ascend; steps is rows of
// searchSteps.
//
//go:noescape
func quantizeAVX512(codes *byte, scales, x *float32, groups, groupSize int, offset float32, steps *[304]float32) int

// dequantizeAVX2 works like dequantizeGeneric on whole groups, at least one, of a multiple
// of 32 elements.
//
//go:noescape
func dequantizeAVX2(x *float32, codes *byte, scales *float32, groups, groupSize int, levels *[256]float32, offset float32)

// dequantizeAVX512 works like dequantizeAVX2.
//
//go:noescape
func dequantizeAVX512(x *float32, codes *byte, scales *float32, groups, groupSize int, levels *[256]float32, offset float32)
