// Package gemm multiplies float32 matrices with weights in the format they are stored in,
// on the threads of one machine. The layout is that of a linear layer in torch:
//
//	C[m][n] = sum over k of A[m][k] * W[n][k]          A: M x K, W: N x K, C: M x N, row-major
//
// W may be float32, bfloat16, float16 or 4-bit ([Quant4]); it is widened to float32 a block
// at a time, in cache, so a 4-bit model never exists in float32. A matrix that is stored
// the other way round, as the B of a plain A*B, is [Transposed].
//
// # Result
//
// All sums are float32. K is cut into blocks of 256, wherever the work is done and in how
// many threads: a block is summed from zero in ascending order, then blocks are added in
// ascending order, to the former C where it is kept. The bits therefore depend on the tier
// (see package panel) and on nothing else: not on threads, nor on the other rows of A.
// The rounding error of an element is at most about (256 + K/256) * 2^-24 * sum |a*w|.
// NaN and infinities go through as in any such sum.
//
// # Blocking
//
// W is the operand that the micro-kernel reads one element at a time, so that its rows
// need no transposition after they are widened; A is transposed once into panels of 48
// rows (24 with AVX2) whose vectors run along m. C comes out transposed, panel by panel,
// in a block that stays in the second-level cache for all of K, and is turned as it is
// written. One task is up to 128 rows of W against as many panels as leave half of that
// cache, as large as the processor says it is, to the block of C; fewer where threads
// would run out of tasks. While one panel is multiplied, the next is asked for.
//
// Up to eight rows of A are not worth a panel: reading W is all there is to it. Sixteen rows
// of W are turned in registers and read once, float32, bfloat16 and 4 bits (in blocks of a
// multiple of 64) as they lie; K must be a multiple of 128 for that, or W is widened first.
package gemm

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/panel"
)

const (
	blockK    = 256      // of the package comment: it changes bits
	blockN    = 128      // rows of W in a task, at most
	minN      = 32       // and at least, when there are many threads
	share     = 8        // tasks for each thread, where there are several: who is held up leaves some to the others
	packBytes = 32 << 20 // of packed A, where that is not less than one panel
)

// A Multiplier has the threads and the scratch memory for products, one at a time. The
// scratch grows to what the largest product needs: 4*K bytes per row of A that is packed
// (at most 32 MiB unless K is above 174,762) and, for a thread, half of a second-level cache
// and 0.1 MiB; see [Scratch]. Goroutines live for the duration of a call.
type Multiplier struct {
	threads int
	packed  []float32
	workers []worker
}

type worker struct {
	w []float32 // a block of the weights, widened
	c []float32 // a block of C, transposed, panel after panel
}

// packedRows is how many rows of A, of k columns, are packed together: whole panels.
func packedRows(kn *panel.Kernel, k int) int {
	full := panel.MaxVecs * kn.Lanes
	return max(full, packBytes/4/max(1, k)/full*full)
}

// Scratch is how many bytes a Multiplier of so many threads holds at most after a product
// of m rows of A with k columns.
func Scratch(threads, m, k int) int64 {
	kn := panel.Best()
	rows := min((m+kn.Lanes-1)/kn.Lanes*kn.Lanes, packedRows(kn, k))
	block := max(kernels.L2(threads)/2, 4*blockN*panel.MaxVecs*kn.Lanes) // of C
	return 4*int64(k)*int64(rows) + int64(max(1, threads))*int64(block+4*blockN*blockK)
}

// New makes a Multiplier with so many threads, at least one.
func New(threads int) *Multiplier {
	return &Multiplier{threads: max(1, threads), workers: make([]worker, max(1, threads))}
}

// Mul computes C = A * transpose(W) for the m rows of a, or C += that with add. Row i of A
// starts at a[i*lda], row i of C at c[i*ldc]; what lies between the rows is left alone.
// C must not overlap A or the weights. Mul panics if a stride or a slice is too short.
func (g *Multiplier) Mul(c []float32, ldc int, a []float32, lda, m int, w *Matrix, add bool) {
	if m < 0 || lda < w.cols || ldc < w.rows {
		panic(fmt.Sprintf("gemm: internal error: %d rows, strides %d and %d for weights [%d %d]", m, lda, ldc, w.rows, w.cols))
	}
	if m == 0 || w.rows == 0 {
		return
	}
	if need := (m-1)*lda + w.cols; len(a) < need {
		panic(fmt.Sprintf("gemm: internal error: a has %d elements, want %d", len(a), need))
	}
	if need := (m-1)*ldc + w.rows; len(c) < need {
		panic(fmt.Sprintf("gemm: internal error: c has %d elements, want %d", len(c), need))
	}
	p := product{Multiplier: g, kn: panel.Best(), w: w, add: add, ldc: ldc, lda: lda}
	if m <= maxFew && w.cols > 0 && (w.wide == nil || w.step == 1) {
		p.few(c, a, m)
		return
	}
	rows := packedRows(p.kn, w.cols)
	for m0 := 0; m0 < m; m0 += rows {
		n := min(rows, m-m0)
		p.block(c[m0*ldc:], a[m0*lda:], n)
	}
}

// A product is one call of Mul.
type product struct {
	*Multiplier
	kn       *panel.Kernel
	w        *Matrix
	add      bool
	lda, ldc int
}

// block multiplies n rows of A, packed once and shared by all threads.
func (p *product) block(c, a []float32, n int) {
	full := panel.MaxVecs * p.kn.Lanes
	panels := (n + full - 1) / full
	lanes := (n + p.kn.Lanes - 1) / p.kn.Lanes * p.kn.Lanes
	k := p.w.cols
	p.packed = grow(p.packed, lanes*k)
	p.run(panels, func(_, i int) {
		rows := min(full, n-i*full)
		width := p.width(rows)
		dst := p.packed[i*full*k:][:width*k]
		if rows < width {
			clear(dst)
		}
		p.kn.Transpose(dst, width, a[i*full*p.lda:], p.lda, rows, k)
	})
	step, high := p.cut(n, full)
	across := (p.w.rows + step - 1) / step
	p.run(across*((n+high-1)/high), func(id, i int) {
		m0, n0 := i/across*high, i%across*step
		p.task(&p.workers[id], c[m0*p.ldc:], m0, min(n, m0+high), n0, min(p.w.rows, n0+step))
	})
}

// cut is how many rows of W and, in whole panels, of A a task has, of n of A.
func (p *product) cut(n, full int) (step, high int) {
	step = blockN
	high = max(1, kernels.L2(p.threads)/2/4/blockN/full)
	panels := (n + full - 1) / full
	high = min(high, panels)
	tasks := func() int { return ((p.w.rows + step - 1) / step) * ((panels + high - 1) / high) }
	for p.threads > 1 && high > 4 && tasks() < share*p.threads {
		high--
	}
	for p.threads > 1 && step > minN && tasks() < share/2*p.threads {
		step /= 2
	}
	// Equal parts: the last task must not be a small rest.
	parts := (panels + high - 1) / high
	return step, (panels + parts - 1) / parts * full
}

// width is the number of lanes of a panel for so many rows of A.
func (p *product) width(rows int) int {
	return (rows + p.kn.Lanes - 1) / p.kn.Lanes * p.kn.Lanes
}

// task multiplies the rows of W from n0 to n1 with the panels from row m0 of A to row m1.
func (p *product) task(s *worker, c []float32, m0, m1, n0, n1 int) {
	full := panel.MaxVecs * p.kn.Lanes
	tiles := (n1 - n0 + p.kn.Rows - 1) / p.kn.Rows
	height := tiles * p.kn.Rows
	rows, lanes := m1-m0, p.width(m1-m0)
	s.c = grow(s.c, lanes*height)
	mode := panel.Store
	if p.add {
		clear(s.c) // also what no row of A and no row of W stands for
		mode = panel.Add
		for at := 0; at < rows; at += full {
			n := min(full, rows-at)
			p.kn.Transpose(s.c[at*height:], p.width(n), c[at*p.ldc+n0:], p.ldc, n, n1-n0)
		}
	}
	for k0 := 0; k0 == 0 || k0 < p.w.cols; k0 += blockK {
		k := min(blockK, p.w.cols-k0)
		wb, row, step := p.w.block(s, n0, n1, k0, k, height)
		for at := 0; at < rows; at += full {
			width := p.width(min(full, rows-at))
			p.kn.MulNext(s.c[at*height:], p.panel(m0+at, m1, k0), wb, row, step, tiles, k, width/p.kn.Lanes, mode, nil, p.next(m0, m0+at, m1, k0))
		}
		mode = panel.Add
	}
	for at := 0; at < rows; at += full {
		n := min(full, rows-at)
		for j := 0; j < n; j += p.kn.Lanes { // few rows of C at a time, which are far apart
			p.kn.Transpose(c[(at+j)*p.ldc+n0:], p.ldc, s.c[at*height+j:], p.width(n), n1-n0, min(p.kn.Lanes, n-j))
		}
	}
}

// panel is the part of the packed panel that begins with row m, of the rows up to m1, from
// k0 on for one block of K.
func (p *product) panel(m, m1, k0 int) []float32 {
	width := p.width(min(panel.MaxVecs*p.kn.Lanes, m1-m))
	return p.packed[m*p.w.cols+k0*width:][:width*min(blockK, p.w.cols-k0)]
}

// next is the panel that a task comes to after that of row m.
func (p *product) next(m0, m, m1, k0 int) []float32 {
	switch full := panel.MaxVecs * p.kn.Lanes; {
	case m+full < m1:
		return p.panel(m+full, m1, k0)
	case k0+blockK < p.w.cols:
		return p.panel(m0, m1, k0+blockK)
	}
	return p.panel(m0, m1, 0) // the next task's, most likely
}

// run does the tasks 0..n-1 on the threads, each on the next one left.
func (g *Multiplier) run(n int, do func(worker, task int)) {
	if g.threads == 1 || n <= 1 {
		for i := range n {
			do(0, i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for id := range min(n, g.threads) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(id, i)
			}
		})
	}
	wg.Wait()
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}
