package attention_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/attention"
	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/kernels/flash/flashtest"
)

// bench is a device with its kernels.
type bench struct {
	dev    driver.Device
	stream driver.Stream
	k      *attention.Kernels
}

func open(tb testing.TB, lib driver.Library) *bench {
	tb.Helper()
	dev, err := lib.OpenDevice(0)
	ok(tb, err)
	b := &bench{dev: dev}
	b.stream, err = dev.NewStream()
	ok(tb, err)
	b.k, err = attention.New(dev)
	ok(tb, err)
	tb.Cleanup(func() {
		ok(tb, b.k.Close())
		ok(tb, b.stream.Close())
		ok(tb, dev.Close())
	})
	return b
}

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (b *bench) put(tb testing.TB, raw []byte) driver.Ptr {
	tb.Helper()
	if len(raw) == 0 {
		return 0
	}
	p, err := b.dev.Alloc(uint64(len(raw)))
	ok(tb, err)
	ok(tb, b.stream.CopyIn(p, raw))
	return p
}

// forward runs a call of the conformance suite.
func (b *bench) forward(t *testing.T, c *flashtest.HalfCall) {
	t.Helper()
	p := &attention.Params{Format: c.Format, QHeads: c.QHeads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, QTokens: c.QTokens, KTokens: c.KTokens,
		Scale: c.Scale, Causal: c.Causal, Window: c.Window, Softcap: c.Softcap}
	p.Q = attention.Heads{At: b.put(t, c.QBytes), Row: c.Q.Row, Head: c.Q.Head}
	p.K = attention.Heads{At: b.put(t, c.KBytes), Row: c.K.Row, Head: c.K.Head}
	p.V = attention.Heads{At: b.put(t, c.VBytes), Row: c.V.Row, Head: c.V.Head}
	p.Out = attention.Heads{At: b.put(t, c.OutBytes), Row: c.OutRow, Head: c.OutHead}
	lse := make([]byte, 4*len(c.LSE))
	p.LSE = b.put(t, lse)
	var err error
	if c.QStarts != nil {
		p.Sequences, err = b.k.NewSequences(c.QStarts, c.KStarts, c.KLens)
		ok(t, err)
	}
	if c.Mask != nil {
		p.Mask, err = b.k.NewMask(c.Mask)
		ok(t, err)
	}
	ok(t, b.k.Forward(b.stream, p))
	for dst, at := range map[*[]byte]driver.Ptr{&c.OutBytes: p.Out.At, &lse: p.LSE} {
		if len(*dst) > 0 {
			ok(t, b.stream.CopyOut(*dst, at))
		}
	}
	ok(t, b.stream.Synchronize())
	for i := range c.LSE {
		c.LSE[i] = math.Float32frombits(binary.LittleEndian.Uint32(lse[4*i:]))
	}
	for _, at := range []driver.Ptr{p.Q.At, p.K.At, p.V.At, p.Out.At, p.LSE} {
		if at != 0 {
			ok(t, b.dev.Free(at))
		}
	}
	if p.Sequences != nil {
		ok(t, p.Sequences.Close())
	}
	if p.Mask != nil {
		ok(t, p.Mask.Close())
	}
}

// The kernels on the GPU of this machine.
func TestDevice(t *testing.T) {
	lib, err := driver.Open()
	if err != nil {
		cudatest.NotRun(t, "cuda", "no device: %v", err)
	}
	flashtest.RunHalf(t, open(t, lib).forward, 10)
}

// The same kernels emulated, behind a driver that does its work late.
func TestEmulated(t *testing.T) {
	flashtest.RunHalf(t, open(t, cudatest.Open(t)).forward, 1)
}
