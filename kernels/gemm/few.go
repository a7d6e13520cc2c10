package gemm

import (
	"math"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/panel"
)

const (
	maxFew   = 8       // rows of A that are multiplied without a panel
	fewWide  = 512     // columns of W that are widened at a time, whole blocks of K
	fewTask  = 1 << 17 // elements of W in a task, about
	fewAlign = 128     // columns that every format comes in whole numbers of
	scaled   = 64      // columns with one scale, as package panel reads 4-bit weights
)

// few multiplies so few rows of A that the time goes into reading W: it is read once,
// where it lies if possible. A is packed in groups of 4, 2 or 1 rows, element t of row i of
// a group of m at t*m+i; the order of the sums is that of task, so the bits are the same.
func (p *product) few(c, a []float32, m int) {
	k := fewUp(p.w.cols)
	p.packed = grow(p.packed, m*k)
	eachGroup(m, func(i0, n int) {
		group := p.packed[i0*k:][:n*k]
		for i := range n {
			for t, x := range a[(i0+i)*p.lda:][:p.w.cols] {
				group[t*n+i] = x
			}
		}
		for i := p.w.cols * n; i < len(group); i++ {
			group[i] = float32(math.Copysign(0, -1)) // times 0 it is -0, which changes no sum
		}
	})
	step := max(panel.FewRows, fewTask/k/panel.FewRows*panel.FewRows)
	for step > panel.FewRows && (p.w.rows+step-1)/step < share*p.threads {
		step -= panel.FewRows
	}
	direct := p.fewDirect()
	p.run((p.w.rows+step-1)/step, func(id, i int) {
		for n := i * step; n < min(p.w.rows, (i+1)*step); n += panel.FewRows {
			p.fewRows(&p.workers[id], c, m, n, min(p.w.rows, n+panel.FewRows), direct)
		}
	})
}

// eachGroup calls do with the first row and the number of rows of each group of m.
func eachGroup(m int, do func(i, n int)) {
	for i, n := 0, panel.MaxFew; i < m; {
		for n > m-i {
			n /= 2
		}
		do(i, n)
		i += n
	}
}

// fewUp is k rounded up to what every format comes in.
func fewUp(k int) int { return (k + fewAlign - 1) &^ (fewAlign - 1) }

// fewDirect says whether whole groups of rows can be read as they lie.
func (p *product) fewDirect() bool {
	w := p.w
	switch {
	case w.cols%fewAlign != 0:
		return false
	case w.stored != nil:
		return w.format == kernels.BF16 && p.kn.Direct()
	case w.packed != nil:
		return w.cols%w.size == 0 && w.size%scaled == 0 && p.kn.Direct()
	}
	return true
}

// fewRows multiplies m rows of A with the rows of W from n0 to n1, at most FewRows.
func (p *product) fewRows(s *worker, c []float32, m, n0, n1 int, direct bool) {
	const rows = panel.FewRows
	cols := p.w.cols
	padded := fewUp(cols)
	out, ldc := c[n0:], p.ldc
	if n1-n0 < rows {
		s.c = grow(s.c, maxFew*rows)
		out, ldc = s.c, rows
		if p.add {
			for i := range m {
				copy(out[i*rows:], c[i*p.ldc+n0:][:n1-n0])
			}
		}
	}
	for k0 := 0; k0 < cols; k0 += fewWide {
		wide := min(fewWide, cols-k0)
		if !direct || n1-n0 < rows {
			p.fewWiden(s, n0, n1, k0, wide)
		} else if p.w.packed != nil {
			p.fewScales(s, n0, k0, wide)
		}
		for b := 0; b < wide; b += blockK {
			k := fewUp(min(blockK, wide-b))
			mode := panel.Add
			if k0+b == 0 && !p.add {
				mode = panel.Store
			}
			var w panel.Rows
			if !direct || n1-n0 < rows {
				w = panel.Rows{Wide: s.w[b:], Stride: fewStride}
			} else {
				w = p.fewView(s, n0, k0, b)
			}
			eachGroup(m, func(i, n int) {
				p.kn.Few(out[i*ldc:], ldc, p.packed[i*padded+(k0+b)*n:], &w, k, n, mode)
				w.Next = 0
			})
		}
	}
	if n1-n0 < rows {
		for i := range m {
			copy(c[i*p.ldc+n0:][:n1-n0], out[i*rows:])
		}
	}
}

// fewStride is from row to row of widened weights; not a multiple of a page, or lines would
// push each other out of the cache.
const fewStride = fewWide + 16

// fewWiden widens the rows of W from n0 to n1 and the columns from k0 on.
func (p *product) fewWiden(s *worker, n0, n1, k0, wide int) {
	s.w = grow(s.w, panel.FewRows*fewStride)
	if n1-n0 < panel.FewRows || wide != fewUp(wide) {
		clear(s.w[:panel.FewRows*fewStride])
	}
	p.w.widen(s.w, fewStride, n0, n1, k0, wide)
}

// fewScales gathers the scales of the columns from k0 on: of the rows from n0 on, next to
// each other, for every 64 columns.
func (p *product) fewScales(s *worker, n0, k0, wide int) {
	w := p.w
	blocks := w.cols / w.size // of a row
	s.c = grow(s.c, panel.FewRows*fewWide/scaled)
	for t := 0; t < wide; t += scaled {
		for j, at := 0, n0*blocks+(k0+t)/w.size; j < panel.FewRows; j, at = j+1, at+blocks {
			s.c[t/scaled*panel.FewRows+j] = w.absmax[at]
		}
	}
}

// fewView is the rows of W from n0 on where they lie, from column k0+b on. What comes next
// in memory is what the next rows are read from, spread over the blocks of this one.
func (p *product) fewView(s *worker, n0, k0, b int) panel.Rows {
	w := p.w
	at := n0*w.cols + k0 + b
	ahead := panel.FewRows*w.cols + (panel.FewRows-1)*(k0+b)
	switch {
	case w.stored != nil:
		return panel.Rows{BF16: w.stored[2*at:], Stride: w.cols, Next: ahead}
	case w.packed != nil:
		return panel.Rows{Packed: w.packed[at/2:], Stride: w.cols, Next: ahead, Levels: &w.book.Levels, Scales: s.c[b/scaled*panel.FewRows:]}
	}
	return panel.Rows{Wide: w.wide[n0*w.row+k0+b:], Stride: w.row, Next: ahead}
}
