// Package quant4 is blockwise 4-bit quantization on plain slices, given a code book.
package quant4

// Codebook is a set of 16 levels, their decision thresholds and the 4-bit code of each.
type Codebook struct {
	Levels     [16]float32 // Levels[code]: what a code stands for, times the block's absmax
	Thresholds [15]float32 // ascending; rank(v) = #{i : v > Thresholds[i]}: ties go down
	ByRank     [16]uint8   // ByRank[rank]: the code of the rank-th smallest level
}
