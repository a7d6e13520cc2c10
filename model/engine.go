package model

import (
	"sync"
	"sync/atomic"

	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/kernels/gemm"
)

// engine has the threads and the scratch memory of a pass.
type engine struct {
	threads int
	gemm    *gemm.Multiplier
	flash   *flash.Attention
	buffers map[string][]float32
}

func newEngine(threads int) *engine {
	return &engine{threads: max(1, threads), gemm: gemm.New(threads), flash: flash.New(threads), buffers: map[string][]float32{}}
}

// buffer is scratch of n elements, with anything in it; equal names share memory.
func (e *engine) buffer(name string, n int) []float32 {
	if cap(e.buffers[name]) < n {
		e.buffers[name] = make([]float32, n)
	}
	return e.buffers[name][:n]
}

// grain is how many rows a thread takes at a time.
const grain = 16

// rows calls do for parts of the range from 0 to n, on all threads. What is done for a row
// must not depend on its part.
func (e *engine) rows(n int, do func(r0, r1 int)) {
	e.tasks((n+grain-1)/grain, func(i int) { do(i*grain, min(n, (i+1)*grain)) })
}

func (e *engine) tasks(n int, do func(i int)) {
	if e.threads == 1 || n <= 1 {
		for i := range n {
			do(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, e.threads) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	wg.Wait()
}

// linear computes rows of y = x W^T + b, with strides ldy and ldx.
func (e *engine) linear(y []float32, ldy int, x []float32, ldx, rows int, l *linear) {
	if rows == 0 {
		return
	}
	e.gemm.Mul(y, ldy, x, ldx, rows, l.w, false)
	if l.a != nil {
		rank := l.a.Rows()
		h := e.buffer("adapter", rows*rank)
		e.gemm.Mul(h, rank, x, ldx, rows, l.a, false)
		e.gemm.Mul(y, ldy, h, rank, rows, l.b, true)
	}
	if l.bias != nil {
		e.rows(rows, func(r0, r1 int) {
			for r := r0; r < r1; r++ {
				for i, b := range l.bias {
					y[r*ldy+i] += b
				}
			}
		})
	}
}
