package attention_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/attention"
	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// TestParams: what does not fit is told, and nothing is launched.
func TestParams(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_DEVICES=2")
	b := open(t, lib)
	other, err := lib.OpenDevice(1)
	ok(t, err)
	defer func() { ok(t, other.Close()) }()
	elsewhere, err := attention.New(other)
	ok(t, err)
	defer func() { ok(t, elsewhere.Close()) }()
	q := b.put(t, make([]byte, 2*4*10*64))
	kv := b.put(t, make([]byte, 2*2*20*64))
	lse := b.put(t, make([]byte, 4*4*10))
	out := b.put(t, make([]byte, 2*4*10*64))
	defer func() {
		for _, p := range []func() error{func() error { return b.dev.Free(q) }, func() error { return b.dev.Free(kv) }, func() error { return b.dev.Free(lse) }, func() error { return b.dev.Free(out) }} {
			ok(t, p())
		}
	}()
	mask, err := b.k.NewMask(flash.Local(128, 20, 20, 0))
	ok(t, err)
	defer func() { ok(t, mask.Close()) }()
	foreign, err := elsewhere.NewSequences([]int{0, 10}, []int{0, 20}, nil)
	ok(t, err)
	defer func() { ok(t, foreign.Close()) }()
	good := func() *attention.Params {
		return &attention.Params{Format: kernels.F16, Q: attention.Heads{At: q, Row: 256, Head: 64}, K: attention.Heads{At: kv, Row: 128, Head: 64}, V: attention.Heads{At: kv, Row: 128, Head: 64},
			Out: attention.Heads{At: out, Row: 256, Head: 64}, LSE: lse, QHeads: 4, KVHeads: 2, HeadDim: 64, QTokens: 10, KTokens: 20, Mask: mask}
	}
	ok(t, b.k.Forward(b.stream, good()))
	ok(t, b.stream.Synchronize())
	before := lib.Count("launches")
	nothing := good()
	nothing.QTokens = 0
	ok(t, b.k.Forward(b.stream, nothing))
	for name, c := range map[string]struct {
		spoil func(p *attention.Params)
		want  string
	}{
		"heads":      {func(p *attention.Params) { p.KVHeads = 3 }, "4 query heads and 3 key heads"},
		"no heads":   {func(p *attention.Params) { p.QHeads = 0 }, "0 query heads"},
		"many heads": {func(p *attention.Params) { p.QHeads = 65536 }, "65536 query heads"},
		"no dim":     {func(p *attention.Params) { p.HeadDim = 0 }, "head dimension 0"},
		"odd dim":    {func(p *attention.Params) { p.HeadDim = 60 }, "head dimension 60"},
		"dim": {func(p *attention.Params) {
			p.HeadDim, p.Q.Row, p.Q.Head, p.Out.Row, p.Out.Head, p.K.Head, p.V.Head = 264, 2048, 264, 2048, 264, 264, 264
			p.K.Row, p.V.Row = 528, 528
		}, "head dimension 264"},
		"format":         {func(p *attention.Params) { p.Format = kernels.F32 }, "float32"},
		"scale":          {func(p *attention.Params) { p.Scale = -1 }, "scale -1"},
		"scale nan":      {func(p *attention.Params) { p.Scale = float32(math.NaN()) }, "scale NaN"},
		"softcap":        {func(p *attention.Params) { p.Softcap = float32(math.Inf(1)) }, "softcap +Inf"},
		"alignment":      {func(p *attention.Params) { p.Q.At += 8 }, "Q at"},
		"nil":            {func(p *attention.Params) { p.V.At = 0 }, "V at 0x0"},
		"lse":            {func(p *attention.Params) { p.LSE += 2 }, "LSE at"},
		"row":            {func(p *attention.Params) { p.K.Row = 130 }, "K with strides 130 and 64"},
		"short row":      {func(p *attention.Params) { p.K.Row = 56 }, "K with strides 56 and 64"},
		"head stride":    {func(p *attention.Params) { p.Out.Head = 56 }, "Out with strides 256 and 56"},
		"tokens":         {func(p *attention.Params) { p.KTokens = -1 }, "-1 keys"},
		"batch":          {func(p *attention.Params) { p.Batch = 70000 }, "a batch of 70000"},
		"mask":           {func(p *attention.Params) { p.KTokens = 129 }, "a mask of 1x1 blocks"},
		"both":           {func(p *attention.Params) { p.Sequences = foreign }, "beside sequences"},
		"another device": {func(p *attention.Params) { p.Sequences, p.QTokens, p.KTokens, p.Mask = foreign, 0, 0, nil }, "another device"},
	} {
		p := good()
		c.spoil(p)
		err := b.k.Forward(b.stream, p)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
		if unsupported := name == "dim" || name == "odd dim" || name == "format"; errors.Is(err, attention.ErrUnsupported) != unsupported {
			t.Errorf("%s: %v is ErrUnsupported or not, want %v", name, err, unsupported)
		}
	}
	if n := lib.Count("launches"); n != before {
		t.Errorf("%d launches of wrong parameters", n-before)
	}
}

func TestLayouts(t *testing.T) {
	b := open(t, cudatest.Open(t))
	for name, lay := range map[string]func() error{
		"no starts":   func() error { _, err := b.k.NewSequences(nil, nil, nil); return err },
		"unequal":     func() error { _, err := b.k.NewSequences([]int{0, 1}, []int{0, 1, 2}, nil); return err },
		"descending":  func() error { _, err := b.k.NewSequences([]int{0, 2, 1}, []int{0, 1, 2}, nil); return err },
		"negative":    func() error { _, err := b.k.NewSequences([]int{-1, 2}, []int{0, 1}, nil); return err },
		"too long":    func() error { _, err := b.k.NewSequences([]int{0, 1}, []int{0, 1 << 30}, nil); return err },
		"key lengths": func() error { _, err := b.k.NewSequences([]int{0, 1}, []int{0, 1}, []int{2}); return err },
	} {
		if err := lay(); err == nil || errors.Is(err, attention.ErrUnsupported) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, block := range []int{64, 100, 192} {
		if _, err := b.k.NewMask(flash.Local(block, 500, 500, 1)); !errors.Is(err, attention.ErrUnsupported) {
			t.Errorf("blocks of %d: got %v, want ErrUnsupported", block, err)
		}
	}
}

func TestTooOld(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_CC=7.5")
	dev, err := lib.OpenDevice(0)
	ok(t, err)
	defer func() { ok(t, dev.Close()) }()
	if _, err := attention.New(dev); !errors.Is(err, cuda.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}
