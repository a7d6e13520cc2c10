package bench

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"

	"github.com/nf4conv/nf4conv/internal/machine"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

// cpuElems are quantized by one thread in a run: 128 MiB of bfloat16, more than most caches
// hold. All threads take a quarter of it each. Tests make it smaller.
var cpuElems int64 = 1 << 26

// Names of the processor's limits.
const (
	memcpyOne = "memcpy, 1 thread"
	readOne   = "read, 1 thread"
	memcpyAll = "memcpy, all threads"
)

// CPU measures the processor: one thread, then all.
func CPU(ctx context.Context, threads int) (*Report, error) {
	r := &Report{Schema: Schema, Device: "cpu (" + kernels.Tier() + ") " + machine.CPUModel(), Threads: threads}
	one, all := []*cpuWork{newCPUWork(cpuElems)}, []*cpuWork{}
	for range threads {
		all = append(all, newCPUWork(cpuElems/4))
	}
	for _, c := range []struct {
		name, of string
		bytes    float64 // an element
		work     []*cpuWork
		do       func(*cpuWork)
	}{
		{readOne, "", 2, one, (*cpuWork).read},
		{memcpyOne, "", 4, one, (*cpuWork).copy},
		{memcpyAll, "", 4, all, (*cpuWork).copy},
		{"BLAKE3, 1 thread", readOne, 2, one, (*cpuWork).hash},
		{"finite check of bfloat16, 1 thread", readOne, 2, one, (*cpuWork).check},
		{"quantize bfloat16 to nf4, 1 thread", readOne, quantizeBytes, one, (*cpuWork).quantize},
		{"quantize bfloat16 to nf4, all threads", memcpyAll, quantizeBytes, all, (*cpuWork).quantize},
		{"dequantize nf4 to bfloat16, 1 thread", memcpyOne, quantizeBytes, one, (*cpuWork).dequantize},
		{"dequantize nf4 to bfloat16, all threads", memcpyAll, quantizeBytes, all, (*cpuWork).dequantize},
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		times, err := measure(func() error {
			var wg sync.WaitGroup
			for _, w := range c.work {
				wg.Go(func() { c.do(w) })
			}
			wg.Wait()
			return nil
		})
		if err != nil {
			return nil, err
		}
		r.add(c.name, int64(c.bytes*float64(c.work[0].n)*float64(len(c.work))), times, c.of)
	}
	return r, nil
}

// quantizeBytes are read and written when a bfloat16 becomes nf4 in blocks of 64.
const quantizeBytes = 2 + 0.5 + 4/64.0

// never is a byte that weights do not hold, so that a search for it reads everything.
const never = 0xff

// cpuWork is the memory of one thread.
type cpuWork struct {
	n                int64 // elements
	src, dst, packed []byte
	absmax           []float32
	found            int
}

func newCPUWork(n int64) *cpuWork {
	w := &cpuWork{n: n, src: weights(int(n)), dst: make([]byte, 2*n), packed: make([]byte, n/2), absmax: make([]float32, n/64)}
	w.quantize()
	return w
}

// weights are n random bfloat16 with the spread of a model's.
func weights(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	period := min(n, 1<<20) // more random numbers only take time
	x := make([]float32, period)
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	b := make([]byte, 2*n)
	cast.FromF32(b[:2*period], x, kernels.BF16)
	for i := range b[:2*period] {
		b[i] = min(b[i], never-1)
	}
	for at := 2 * period; at < len(b); at *= 2 {
		copy(b[at:], b[:at])
	}
	return b
}

func (w *cpuWork) read()  { w.found = bytes.IndexByte(w.src, never) }
func (w *cpuWork) copy()  { copy(w.dst[:len(w.src)], w.src) }
func (w *cpuWork) check() { w.found = cast.FirstNonFinite(w.src, kernels.BF16) }
func (w *cpuWork) hash()  { treehash.Sum(w.src) }

func (w *cpuWork) quantize() {
	quant4.Quantize(w.packed, w.absmax, w.src, kernels.BF16, 64, nf4.NF4.Codebook())
}

func (w *cpuWork) dequantize() {
	quant4.Dequantize(w.src, kernels.BF16, w.packed, w.absmax, int(w.n), 64, nf4.NF4.Codebook())
}
