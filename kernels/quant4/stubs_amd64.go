//go:build !purego

package quant4

// quantizeBF16AVX2 works like quantizeGeneric on whole blocks of bfloat16 of a multiple of
// 32 elements. It stops before a block with an absmax outside [least, least+span), which
// are those of the wordTable that rows is the first of, and returns the number of blocks
// before it. batch is a number of blocks that fit the first-level cache.
//
//go:noescape
func quantizeBF16AVX2(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, rows *[16]int16, codes *[16]byte) int

// quantizeBF16AVX512 works like quantizeBF16AVX2.
//
//go:noescape
func quantizeBF16AVX512(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, rows *[16]int16, codes *[16]byte) int

// quantizeF16AVX2 works like quantizeBF16AVX2, on binary16.
//
//go:noescape
func quantizeF16AVX2(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, rows *[16]int16, codes *[16]byte) int

// quantizeF16AVX512 works like quantizeF16AVX2.
//
//go:noescape
func quantizeF16AVX512(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, rows *[16]int16, codes *[16]byte) int

// quantizeCellsAVX512 works like quantizeBF16AVX2, for books that have cells.
//
//go:noescape
func quantizeCellsAVX512(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, least, span uint32, cells *[128][4][32]uint16) int

// quantizeFloatsF32AVX2 works like quantizeGeneric on whole blocks of float32 of a multiple
// of 32 elements. It stops before a block that is not finite and returns the number of
// blocks before it.
//
//go:noescape
func quantizeFloatsF32AVX2(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, steps *[4][16]float32, codes *[16]byte) int

// quantizeFloatsF32AVX512 works like quantizeFloatsF32AVX2.
//
//go:noescape
func quantizeFloatsF32AVX512(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, steps *[4][16]float32, codes *[16]byte) int

// quantizeFloatsF16AVX2 works like quantizeFloatsF32AVX2, on binary16.
//
//go:noescape
func quantizeFloatsF16AVX2(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, steps *[4][16]float32, codes *[16]byte) int

// quantizeFloatsF16AVX512 works like quantizeFloatsF16AVX2.
//
//go:noescape
func quantizeFloatsF16AVX512(packed *byte, absmax *float32, src *byte, blocks, blockSize, batch int, steps *[4][16]float32, codes *[16]byte) int

// dequantizeBF16AVX2 works like dequantizeGeneric on whole blocks of a multiple of 32
// elements, with finite levels. It stops before a scale that is not finite and returns the
// number of blocks before it.
//
//go:noescape
func dequantizeBF16AVX2(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int

// dequantizeBF16AVX512 works like dequantizeBF16AVX2.
//
//go:noescape
func dequantizeBF16AVX512(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int

// dequantizeF16AVX2 works like dequantizeBF16AVX2, to binary16.
//
//go:noescape
func dequantizeF16AVX2(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int

// dequantizeF16AVX512 works like dequantizeF16AVX2.
//
//go:noescape
func dequantizeF16AVX512(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int

// dequantizeF32AVX2 works like dequantizeBF16AVX2, to float32.
//
//go:noescape
func dequantizeF32AVX2(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int

// dequantizeF32AVX512 works like dequantizeF32AVX2.
//
//go:noescape
func dequantizeF32AVX512(dst, packed *byte, absmax *float32, blocks, blockSize int, levels *[16]float32) int

// momentsBF16AVX2 works like blockMomentsGeneric on groups of 16 elements, at least one.
// sums are those of Moments, in its order.
//
//go:noescape
func momentsBF16AVX2(src, packed *byte, groups int, levels *[16]float32, sums *[3]float64)

// momentsF16AVX2 works like momentsBF16AVX2, on binary16.
//
//go:noescape
func momentsF16AVX2(src, packed *byte, groups int, levels *[16]float32, sums *[3]float64)

// momentsF32AVX2 works like momentsBF16AVX2, on float32.
//
//go:noescape
func momentsF32AVX2(src, packed *byte, groups int, levels *[16]float32, sums *[3]float64)
