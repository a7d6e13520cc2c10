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

// cpuElems are quantized by every thread in a run: 32 MiB of bfloat16, more than a core's
// share of any cache.
const cpuElems = 1 << 24

// Names of the processor's limits.
const (
	memcpyOne = "memcpy, 1 thread"
	readOne   = "read, 1 thread"
	memcpyAll = "memcpy, all threads"
)

// CPU measures the processor: one thread, then all.
func CPU(ctx context.Context, threads int) (*Report, error) {
	r := &Report{Schema: Schema, Device: "cpu (" + kernels.Tier() + ") " + machine.CPUModel(), Threads: threads}
	w := newCPUWork()
	all := []*cpuWork{w}
	for range threads - 1 {
		all = append(all, newCPUWork())
	}
	for _, c := range []struct {
		name, of string
		bytes    int64
		work     []*cpuWork
		do       func(*cpuWork)
	}{
		{readOne, "", 2 * cpuElems, all[:1], (*cpuWork).read},
		{memcpyOne, "", 4 * cpuElems, all[:1], (*cpuWork).copy},
		{memcpyAll, "", 4 * cpuElems, all, (*cpuWork).copy},
		{"BLAKE3, 1 thread", readOne, 2 * cpuElems, all[:1], (*cpuWork).hash},
		{"finite check of bfloat16, 1 thread", readOne, 2 * cpuElems, all[:1], (*cpuWork).check},
		{"quantize bfloat16 to nf4, 1 thread", readOne, quantizeBytes(cpuElems, 2), all[:1], (*cpuWork).quantize},
		{"quantize bfloat16 to nf4, all threads", memcpyAll, quantizeBytes(cpuElems, 2), all, (*cpuWork).quantize},
		{"dequantize nf4 to bfloat16, 1 thread", memcpyOne, quantizeBytes(cpuElems, 2), all[:1], (*cpuWork).dequantize},
		{"dequantize nf4 to bfloat16, all threads", memcpyAll, quantizeBytes(cpuElems, 2), all, (*cpuWork).dequantize},
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
		r.add(c.name, c.bytes*int64(len(c.work)), times, c.of)
	}
	return r, nil
}

// quantizeBytes are read and written when n elements of size bytes become nf4 in blocks of 64.
func quantizeBytes(n, size int64) int64 { return n*size + n/2 + 4*n/64 }

// cpuWork is the memory of one thread.
type cpuWork struct {
	src, dst, packed []byte
	absmax           []float32
	found            int
}

func newCPUWork() *cpuWork {
	w := &cpuWork{src: weights(cpuElems), dst: make([]byte, 2*cpuElems), packed: make([]byte, cpuElems/2), absmax: make([]float32, cpuElems/64)}
	w.quantize()
	return w
}

// weights are n random bfloat16 with the spread of a model's.
func weights(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	const period = 1 << 20 // more random numbers only take time
	x := make([]float32, period)
	for i := range x {
		x[i] = float32(r.NormFloat64() * 0.02)
	}
	b := make([]byte, 2*n)
	cast.FromF32(b[:2*period], x, kernels.BF16)
	for at := 2 * period; at < len(b); at *= 2 {
		copy(b[at:], b[:at])
	}
	return b
}

func (w *cpuWork) read()  { w.found = bytes.IndexByte(w.dst, 1) } // of zeros: nothing is found
func (w *cpuWork) copy()  { copy(w.packedCopy(), w.src) }
func (w *cpuWork) check() { w.found = cast.FirstNonFinite(w.src, kernels.BF16) }
func (w *cpuWork) hash()  { treehash.Sum(w.src) }

// packedCopy is where copies go; dst stays zero for read.
func (w *cpuWork) packedCopy() []byte {
	if cap(w.packed) < len(w.src) {
		w.packed = make([]byte, len(w.src))
	}
	return w.packed[:len(w.src)]
}

func (w *cpuWork) quantize() {
	quant4.Quantize(w.packed[:cpuElems/2], w.absmax, w.src, kernels.BF16, 64, nf4.NF4.Codebook())
}

func (w *cpuWork) dequantize() {
	quant4.Dequantize(w.src, kernels.BF16, w.packed[:cpuElems/2], w.absmax, cpuElems, 64, nf4.NF4.Codebook())
}
