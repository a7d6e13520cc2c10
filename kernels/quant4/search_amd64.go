//go:build !purego

package quant4

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// A searchTable holds the thresholds of a book in the order in which the binary searches
// of the assembly want them.
type searchTable struct {
	sorted bool     // the thresholds ascend, so that they can be searched
	codes  [16]byte // Codebook.ByRank
	// steps[s][8*m1+4*m2+2*m3] is the threshold to compare with in step s after the outcomes
	// m1, m2, m3 of the steps before.
	steps [4][16]float32

	bf16, f16 *wordTable // nil when the book's thresholds are not fit for it

	// cells, unless it is nil, holds for every fraction of a bfloat16 absmax the thresholds of
	// 32 cells of positive x, of 32 of negative x, and the codes of both: the lower byte of a
	// word is the code from the threshold on, the upper byte the code before.
	cells *[128][4][32]uint16
}

// A wordTable is the thresholds in a 16-bit source format, for blocks with an absmax, as bits
// of that format, of at least least and less than least+span.
//
// For a given absmax, v = x*r is a monotone function of x, so "v > threshold" is "x > the
// largest x with v <= threshold": a comparison of the bits of x as signed magnitudes, exact
// by construction. The function only depends on the fraction of absmax: a power of two more
// moves r and the thresholds of x by that power, as long as no threshold becomes subnormal in
// the format and no product in float32. So a row holds, for one fraction, the largest x as
// if the exponent of absmax were zero, and the last row the direction in which the exponent
// moves them. Thresholds of zero do not move.
type wordTable struct {
	least, span uint32
	rows        [][16]int16
}

// rowOrder is the thresholds' order in a row: those of the last step of the search,
// those of the third, of the second, of the first, and one that is not used.
var rowOrder = [16]int{0, 2, 4, 6, 8, 10, 12, 14, 1, 5, 9, 13, 3, 11, 7, 7}

// wordFormat describes a 16-bit source format to makeRows.
type wordFormat struct {
	float     kernels.Float
	fraction  int    // bits
	unit      int    // 1
	least     uint32 // no absmax below; a power of two
	end       uint32 // all absmax below
	threshold float64
}

// In bfloat16, absmax from 2^-100 and thresholds from 2^-20 keep everything that decides a
// comparison normal, and below 2^16 the product of the smallest x with r is not rounded to
// zero. In binary16 all is normal in float32; what bounds absmax is that thresholds must
// be normal in the format, see makeRows.
var (
	bf16Words = wordFormat{kernels.BF16, 7, 0x3f80, 0x0d80, 0x4780, 0x1p-20}
	f16Words  = wordFormat{kernels.F16, 10, 0x3c00, 0x0400, 0x7c00, 0x1p-13}
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
	t.sorted = slices.IsSorted(b.Thresholds[:]) && b.Thresholds[0] == b.Thresholds[0] // NaN sort first
	if !t.sorted {
		return t
	}
	for i := range 16 {
		t.steps[0][i] = b.Thresholds[7]
		t.steps[1][i] = b.Thresholds[i&8+3]
		t.steps[2][i] = b.Thresholds[i&12+1]
		t.steps[3][i] = b.Thresholds[i&14]
	}
	t.bf16, t.f16 = makeRows(b, bf16Words), makeRows(b, f16Words)
	if t.bf16 != nil {
		t.makeCells()
	}
	return t
}

// makeRows makes the table of a format, or none when a threshold is too small or above 1.
func makeRows(b *Codebook, f wordFormat) *wordTable {
	signs := [16]int16{}
	for i, k := range rowOrder {
		v := float64(b.Thresholds[k])
		if m := math.Abs(v); m != 0 && !(m >= f.threshold && m <= 1) {
			return nil
		}
		if v > 0 {
			signs[i] = 1
		} else if v < 0 {
			signs[i] = -1
		}
	}
	t := &wordTable{rows: make([][16]int16, 1<<f.fraction+1)}
	t.rows[1<<f.fraction] = signs
	smallest := f.unit
	for m := range 1 << f.fraction {
		top := f.unit | m
		r := reciprocal(f.value(top))
		for i, k := range rowOrder {
			// The largest x with v <= threshold, -top-1 when there is none: near by the product.
			x := min(max(f.bits(b.Thresholds[k]*f.value(top)), -top-1), top)
			for x < top && !(f.value(x+1)*r > b.Thresholds[k]) {
				x++
			}
			for x >= -top && f.value(x)*r > b.Thresholds[k] {
				x--
			}
			if signs[i] != 0 {
				smallest = min(smallest, max(x, -x))
			}
			t.rows[m][i] = int16(x - int(signs[i])*f.unit)
		}
	}
	// The exponent that takes the smallest threshold to the smallest normal number.
	field := 1<<f.fraction - 1
	t.least = max(f.least, uint32((f.unit-smallest+1<<f.fraction+field)&^field))
	t.span = f.end - t.least
	return t
}

// value is the number with the signed magnitude x.
func (f wordFormat) value(x int) float32 {
	var v [1]float32
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], uint16(max(x, -x)))
	cast.ToF32(v[:], b[:], f.float)
	if x < 0 {
		return -v[0]
	}
	return v[0]
}

// bits is the signed magnitude of v, rounded to the format.
func (f wordFormat) bits(v float32) int {
	var b [2]byte
	cast.FromF32(b[:], []float32{v}, f.float)
	x := int(binary.LittleEndian.Uint16(b[:]))
	if x > 0x7fff {
		return 0x8000 - x
	}
	return x
}

// makeCells puts the thresholds of rows, as distances from absmax in bits of bfloat16, into
// cells of 32 steps, a quarter of a power of two. There are no cells when two thresholds
// share one or when a threshold is zero, for zero and the smallest number share one.
func (t *searchTable) makeCells() {
	const width, count = 32, 32
	cells := new([128][4][count]uint16)
	negative := 0 // thresholds: the rank of zero
	for _, s := range t.bf16.rows[len(cells)][:15] {
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
		for i, x := range t.bf16.rows[m][:15] {
			sign, d := 0, top-int(x) // above the threshold: a distance less than d
			if t.bf16.rows[len(cells)][i] < 0 {
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
