//go:build !purego

package quant4

import (
	"math"
	"slices"
)

// A searchTable holds the thresholds of a book in the order in which the binary searches
// of the assembly want them.
type searchTable struct {
	sorted bool     // the thresholds ascend, so that they can be searched
	codes  [16]byte // Codebook.ByRank
	// steps[s][8*m1+4*m2+2*m3] is the threshold to compare with in step s after the outcomes
	// m1, m2, m3 of the steps before.
	steps [4][16]float32

	words bool // rows can be used
	rows  [129][16]int16

	// cells, unless it is nil, holds for every mantissa of absmax the thresholds of 32 cells of
	// positive x, of 32 of negative x, and the codes of both: the lower byte of a word is the
	// code from the threshold on, the upper byte the code before.
	cells *[128][4][32]uint16
}

// rowOrder is the thresholds' order in a row: those of the last step of the search,
// those of the third, of the second, of the first, and one that is not used.
var rowOrder = [16]int{0, 2, 4, 6, 8, 10, 12, 14, 1, 5, 9, 13, 3, 11, 7, 7}

// signRow is the row after those of the mantissas.
const signRow = 128

// Absmax, as bfloat16, for which rows hold: [2^-100, 2^16). In this range nothing that
// decides a comparison is subnormal or overflows, see rows.
const (
	leastRow = 0x0d80
	endRow   = 0x4780
)

// searchTable returns the table of b.
func (b *Codebook) searchTable() *searchTable {
	if t := b.search.Load(); t != nil {
		return t
	}
	t := newSearchTable(b) // made twice when two threads come first: the results are equal
	b.search.Store(t)
	return t
}

func newSearchTable(b *Codebook) *searchTable {
	t := &searchTable{codes: b.ByRank}
	t.sorted = slices.IsSorted(b.Thresholds[:]) && b.Thresholds[0] == b.Thresholds[0]
	for i := range 16 {
		t.steps[0][i] = b.Thresholds[7]
		t.steps[1][i] = b.Thresholds[i&8+3]
		t.steps[2][i] = b.Thresholds[i&12+1]
		t.steps[3][i] = b.Thresholds[i&14]
	}
	t.words = t.sorted
	for _, v := range b.Thresholds {
		m := math.Abs(float64(v))
		t.words = t.words && (m == 0 || m >= 0x1p-20 && m <= 1)
	}
	if t.words {
		t.makeRows(b)
		t.makeCells()
	}
	return t
}

// makeRows turns the thresholds of v = x*r into thresholds of x. For a given absmax, v is
// a monotone function of x, so "v > threshold" is "x > the largest x with v <= threshold":
// a comparison of the bits of x as signed magnitudes, exact by construction. The function
// only depends on the mantissa of absmax, of which bfloat16 has 128: a power of two more
// moves r and the thresholds of x by that power. So a row holds, for one mantissa, the
// largest x as if the exponent of absmax were zero, and the last row the direction in which the
// exponent moves them. Thresholds of zero do not move.
func (t *searchTable) makeRows(b *Codebook) {
	for i, k := range rowOrder {
		switch v := b.Thresholds[k]; {
		case v > 0:
			t.rows[signRow][i] = 1
		case v < 0:
			t.rows[signRow][i] = -1
		}
	}
	const unit = 0x3f80 // 1 as bfloat16
	for m := range signRow {
		top := unit | m
		r := reciprocal(math.Float32frombits(uint32(top) << 16))
		for i, k := range rowOrder {
			// The largest x with v <= threshold, -top-1 when there is none.
			lo, hi := -top-1, top
			for lo < hi {
				x := lo + (hi-lo+1)/2
				v := math.Float32frombits(uint32(max(x, -x)) << 16)
				if x < 0 {
					v = -v
				}
				if v*r > b.Thresholds[k] {
					hi = x - 1
				} else {
					lo = x
				}
			}
			t.rows[m][i] = int16(lo - int(t.rows[signRow][i])*unit)
		}
	}
}

// makeCells puts the thresholds of rows, as distances from absmax in bits of bfloat16, into
// cells of 32 steps, a quarter of a power of two. There are no cells when two thresholds
// share one or when a threshold is zero, for zero and the smallest number share one.
func (t *searchTable) makeCells() {
	const width, count = 32, 32
	cells := new([128][4][count]uint16)
	negative := 0 // thresholds: the rank of zero
	for _, s := range t.rows[signRow][:15] {
		if s == 0 {
			return
		}
		if s < 0 {
			negative++
		}
	}
	for m := range cells {
		var limit [2][count]int // the distance at which the rank changes, of positive and negative x; 0: not here
		top := m
		for i, x := range t.rows[m][:15] {
			sign, d := 0, top-int(x) // above the threshold: a distance less than d
			if t.rows[signRow][i] < 0 {
				sign, d = 1, top+int(x)+1 // not above it
			}
			c := min(d/width, count-1)
			if d < 0 || limit[sign][c] != 0 {
				return
			}
			limit[sign][c] = d
		}
		for sign, step := range [2]int{1, -1} {
			rank := negative
			for c := count - 1; c >= 0; c-- {
				code, before := t.codes[rank], byte(0)
				if limit[sign][c] != 0 {
					rank += step
					before = t.codes[rank]
				}
				cells[m][sign][c] = uint16(limit[sign][c])
				cells[m][2+sign][c] = uint16(code) | uint16(before)<<8
			}
		}
	}
	t.cells = cells
}
