package quant8

import "math"

// tiny keeps the reciprocal of a group that is all zero finite.
const tiny = float32(1e-38)

func sumGroupsGeneric(partial []float64, x []float32) {
	var buf [SumGroup]float64
	for i := range partial {
		g := x[i*SumGroup : min((i+1)*SumGroup, len(x))]
		for k, a := range g {
			buf[k] = float64(a)
		}
		partial[i] = groupSum(buf[:len(g)])
	}
}

// groupSum adds up to SumGroup values.
func groupSum(v []float64) float64 {
	var acc [SumLanes]float64
	for i, x := range v {
		acc[i%SumLanes] += x
	}
	for n := SumLanes / 2; n > 0; n /= 2 {
		for j := range n {
			acc[j] += acc[j+n]
		}
	}
	return acc[0]
}

func quantizeGeneric(codes []byte, scales, x []float32, offset float32, groupSize int, book *Codebook) {
	t := book.table()
	for g := range scales {
		lo, hi := g*groupSize, min((g+1)*groupSize, len(x))
		var a float32
		for _, v := range x[lo:hi] {
			a = max(a, float32(math.Abs(float64(v-offset))))
		}
		scales[g] = a
		r := 1 / max(a, tiny)
		for i, v := range x[lo:hi] {
			codes[lo+i] = t.code(float32(v-offset)*r, book)
		}
	}
}

func dequantizeGeneric(x []float32, codes []byte, scales []float32, levels *[256]float32, offset float32, groupSize int) {
	for g, a := range scales {
		for i := g * groupSize; i < min((g+1)*groupSize, len(codes)); i++ {
			x[i] = float32(levels[codes[i]]*a) + offset
		}
	}
}

// A cellTable finds the code of a scaled value with one lookup and one comparison. Its
// cells are the values that share sign, exponent and the upper bits of the fraction. The
// cell is a monotone function of v, so all midpoints in lower cells are below v and all in
// higher ones above; only the cell's own, at most one, is left to compare with.
type cellTable struct {
	midpoint [2 * cellsPerSign]float32
	below    [2 * cellsPerSign]uint32 // midpoints below that of the cell
	exact    bool                     // false: two midpoints share a cell, the table is of no use
}

const (
	cellShift    = 17                             // 64 cells from one power of two to the next
	firstCell    = (127 - 24) << (23 - cellShift) // smaller magnitudes share a cell
	cellsPerSign = 25 << (23 - cellShift)         // up to 2
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
	t := &cellTable{exact: true}
	last := -1
	for i, m := range b.Midpoints {
		c := order(cellOf(m))
		if !(m > -2 && m < 2) || c <= last {
			t.exact = false
			return t
		}
		last = c
		t.midpoint[cellOf(m)] = b.Midpoints[i]
	}
	n := 0
	for c := range t.below {
		cell := order(c) // its own inverse
		t.below[cell] = uint32(n)
		if n < len(b.Midpoints) && cellOf(b.Midpoints[n]) == cell {
			n++
		} else {
			t.midpoint[cell] = float32(math.Inf(1)) // an empty cell: v is not above it
		}
	}
	return t
}

// order turns the cells of both signs into one ascending row, and back.
func order(cell int) int {
	if cell >= cellsPerSign {
		return cell
	}
	return cellsPerSign - 1 - cell
}

// cellOf is the cell of v: those of negative numbers come first, from zero down.
func cellOf(v float32) int {
	b := math.Float32bits(v)
	c := min(max(int(b&0x7fffffff>>cellShift), firstCell)-firstCell, cellsPerSign-1)
	if b>>31 == 0 {
		c += cellsPerSign
	}
	return c
}

// code is the number of midpoints below v; that of NaN is 0.
func (t *cellTable) code(v float32, b *Codebook) byte {
	if !t.exact || v != v {
		return nearest(v, b)
	}
	c := cellOf(v)
	n := t.below[c]
	if v > t.midpoint[c] {
		n++
	}
	return byte(n)
}

// nearest is the definition of code. The search has eight steps, each a comparison.
func nearest(v float32, b *Codebook) byte {
	n := 0
	for step := 128; step > 0; step /= 2 {
		if k := n + step; k <= len(b.Midpoints) && b.Midpoints[k-1] < v {
			n = k
		}
	}
	return byte(n)
}
