//go:build !purego

package vexp

// gateAVX2 works like gateGeneric on groups of eight, at least one.
//
//go:noescape
func gateAVX2(x *float32, groups int, c1, c3 float64)

// gateAVX512 works like gateGeneric on groups of eight, at least one.
//
//go:noescape
func gateAVX512(x *float32, groups int, c1, c3 float64)

// divergenceAVX2 works like divergenceGeneric on groups of eight, at least one.
//
//go:noescape
func divergenceAVX2(sums *float64, a, b *float32, groups int, ma, mb float64)

// divergenceAVX512 works like divergenceGeneric on groups of eight, at least one.
//
//go:noescape
func divergenceAVX512(sums *float64, a, b *float32, groups int, ma, mb float64)

// maxAVX2 sets eight lanes to the largest of groups of 32 elements, at least one.
//
//go:noescape
func maxAVX2(lanes, x *float32, groups int)

// maxAVX512 sets sixteen lanes to the largest of groups of 64 elements, at least one.
//
//go:noescape
func maxAVX512(lanes, x *float32, groups int)
