package quant4

import "math"

// A cellTable finds the code of a scaled value with one lookup and one comparison. It
// cuts the line into cells that are evenly wide and hold at most one threshold each. As
// the cell is a monotone function of v, every threshold in a lower cell is below v and
// every one in a higher cell above: only the cell's own is left to compare with.
type cellTable struct {
	cells [numCells]cell
	scale float32 // cells per unit, a power of two
	exact bool    // false: two thresholds share a cell, the table is of no use
}

// A cell's code is lo up to the threshold t and lo^flip above it.
type cell struct {
	t        float32
	lo, flip uint8
}

const (
	numCells = 1024
	maxScale = 256 // so that |v| < 2 stays inside the table
)

// table returns the cells of b.
func (b *Codebook) table() *cellTable {
	if t := b.cells.Load(); t != nil {
		return t
	}
	t := newCellTable(b) // made twice when two threads come first: the results are equal
	b.cells.Store(t)
	return t
}

func newCellTable(b *Codebook) *cellTable {
	t := new(cellTable)
	for t.scale = 16; t.scale <= maxScale; t.scale *= 2 {
		if t.exact = t.separates(b.Thresholds[:]); t.exact {
			break
		}
	}
	if !t.exact {
		return t
	}
	rank := 0
	for i := range t.cells {
		// An empty cell: any threshold will do.
		t.cells[i] = cell{lo: b.ByRank[rank]}
		if rank < len(b.Thresholds) && t.index(b.Thresholds[rank]) == i {
			t.cells[i].t = b.Thresholds[rank]
			rank++
			t.cells[i].flip = t.cells[i].lo ^ b.ByRank[rank]
		}
	}
	return t
}

func (t *cellTable) separates(thresholds []float32) bool {
	last := -1
	for _, v := range thresholds {
		i := t.index(v)
		if !(v >= -1 && v <= 1) || i <= last {
			return false
		}
		last = i
	}
	return true
}

// index is the cell of v, |v| < 2: v*scale, which is exact, rounded to an integer by the
// addition of a number whose last place is worth one. It stays in range for any v.
func (t *cellTable) index(v float32) int {
	const magic = 1<<23 + numCells/2
	return int(math.Float32bits(float32(v*t.scale)+magic) & (numCells - 1))
}

// code is the code of v, which must not be NaN. The comparison is half the time true at
// random: written so, it compiles to no branch.
func (t *cellTable) code(v float32) uint8 {
	c := &t.cells[t.index(v)]
	var above uint8
	if v > c.t {
		above = 1
	}
	return c.lo ^ c.flip&-above
}
