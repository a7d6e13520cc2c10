package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/nf4"
)

// gpuElems is the size of the weight that the kernels work on: an 8192 x 8192 matrix, or less
// where a device has less memory. The launches of double quantization weigh less in a large
// weight: it is measured on a 28672 x 8192 matrix, one of a model of 70 billion parameters, too.
// Tests make them smaller.
var (
	gpuElems int64 = 8192 * 8192
	gpuLarge int64 = 28672 * 8192
)

// Names of a GPU's limits.
const (
	copyDevice = "copy within the device"
	copyIn     = "copy to the device, pinned"
	copyOut    = "copy from the device, pinned"
	copyBoth   = "copies both ways at once, pinned"
)

// GPU measures a device of lib: copies, then kernels beside the copy within the device.
func GPU(ctx context.Context, lib driver.Library, index int) (*Report, error) {
	info := lib.Devices()[index]
	r := &Report{Schema: Schema, Device: fmt.Sprintf("cuda:%d (%s, driver API %s)", index, info.Name, lib.Version())}
	g, err := openGPU(lib, info)
	if err == nil {
		err = errors.Join(g.measure(ctx, r), g.close())
	}
	if err != nil {
		return nil, fault.IOf("measuring cuda:%d: %w", index, err)
	}
	return r, nil
}

type gpuWork struct {
	dev     driver.Device
	module  driver.Module
	streams [2]driver.Stream
	start   driver.Event
	end     driver.Event
	args    *driver.Args
	elems   int64      // of the standard case
	large   int64      // of a large weight, for which there is memory in 16 bits
	memory  driver.Ptr // in one piece, cut below
	src     driver.Ptr // 4*elems
	dst     driver.Ptr // 4*elems
	packed  driver.Ptr
	absmax  driver.Ptr
	codes   driver.Ptr
	nested  driver.Ptr
	sums    driver.Ptr
	offset  driver.Ptr
	dynamic driver.Ptr
	host    [2][]byte
}

func openGPU(lib driver.Library, info driver.Info) (*gpuWork, error) {
	image, _, err := cuda.Image(info.Major, info.Minor)
	if err != nil {
		return nil, err
	}
	g := &gpuWork{args: driver.NewArgs(), elems: gpuElems, large: gpuLarge}
	if g.dev, err = lib.OpenDevice(info.Index); err != nil {
		return nil, err
	}
	if err := g.prepare(image); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

func (g *gpuWork) prepare(image []byte) (err error) {
	free, _, err := g.dev.MemInfo()
	if err != nil {
		return err
	}
	for uint64(g.large)*6 > free/2 {
		g.elems, g.large = g.elems/2, g.large/2
	}
	if g.module, err = g.dev.LoadModule(image); err != nil {
		return err
	}
	for i := range g.streams {
		if g.streams[i], err = g.dev.NewStream(); err != nil {
			return err
		}
		if g.host[i], err = g.dev.AllocHost(int(min(1<<26, 2*g.large))); err != nil {
			return err
		}
	}
	if g.start, err = g.dev.NewEvent(); err != nil {
		return err
	}
	if g.end, err = g.dev.NewEvent(); err != nil {
		return err
	}
	n, blocks := g.large, g.large/32
	sizes := []struct {
		at   *driver.Ptr
		size int64
	}{
		{&g.src, 2 * n}, {&g.dst, 2 * n}, {&g.packed, n / 2}, {&g.absmax, 4 * blocks}, {&g.codes, blocks},
		{&g.nested, 4 * doublequant.Groups(blocks)}, {&g.sums, 8 * cuda.SumLen(blocks)}, {&g.offset, 4}, {&g.dynamic, 1024},
	}
	var total int64
	for _, s := range sizes {
		total += (s.size + 255) &^ 255
	}
	if g.memory, err = g.dev.Alloc(uint64(total)); err != nil {
		return err
	}
	at := g.memory
	for _, s := range sizes {
		*s.at = at
		at += driver.Ptr((s.size + 255) &^ 255)
	}
	return g.fill()
}

// fill puts weights and the dynamic map on the device.
func (g *gpuWork) fill() error {
	m := make([]byte, 1024)
	cast.FromF32(m, doublequant.Map()[:], kernels.F32)
	s := g.streams[0]
	err := s.CopyIn(g.dynamic, m)
	copy(g.host[0], weights(len(g.host[0])/2))
	for off := int64(0); off < 2*g.large; off += int64(len(g.host[0])) {
		err = errors.Join(err, s.CopyIn(g.src+driver.Ptr(off), g.host[0][:min(int64(len(g.host[0])), 2*g.large-off)]))
	}
	return errors.Join(err, s.Synchronize())
}

func (g *gpuWork) close() error {
	var errs []error
	for i := range g.streams {
		if g.streams[i] != nil {
			errs = append(errs, g.streams[i].Close())
		}
		if g.host[i] != nil {
			errs = append(errs, g.dev.FreeHost(g.host[i]))
		}
	}
	for _, e := range []driver.Event{g.start, g.end} {
		if e != nil {
			errs = append(errs, e.Close())
		}
	}
	if g.memory != 0 {
		errs = append(errs, g.dev.Free(g.memory))
	}
	if g.module != nil {
		errs = append(errs, g.module.Close())
	}
	return errors.Join(append(errs, g.dev.Close())...)
}

// launch starts a kernel; its arguments are in g.args.
func (g *gpuWork) launch(l cuda.Launch) error {
	f, err := g.module.Function(l.Name)
	if err != nil {
		return err
	}
	return g.streams[0].Launch(f, driver.D1(l.Grid), driver.D1(l.Block), l.Shared, g.args)
}

// repeats is how often a kernel runs between two events: the time of one is too short for
// the clock.
const repeats = 20

// time measures f on the device.
func (g *gpuWork) time(f func() error) ([]time.Duration, error) {
	var times []time.Duration
	for i := range runs + 1 {
		if err := g.streams[0].Record(g.start); err != nil {
			return nil, err
		}
		for range repeats {
			if err := f(); err != nil {
				return nil, err
			}
		}
		if err := errors.Join(g.streams[0].Record(g.end), g.streams[0].Synchronize()); err != nil {
			return nil, err
		}
		d, err := g.end.Since(g.start)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			times = append(times, d/repeats)
		}
	}
	return times, nil
}

func (g *gpuWork) measure(ctx context.Context, r *Report) error {
	if err := g.copies(r); err != nil {
		return err
	}
	for _, c := range g.kernels() {
		if err := ctx.Err(); err != nil {
			return err
		}
		times, err := g.time(c.run)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		r.add(c.name, int64(math.Round(c.bytes*float64(c.elems))), times, copyDevice)
	}
	return nil
}

func (g *gpuWork) copies(r *Report) error {
	size := int64(len(g.host[0]))
	s, t := g.streams[0], g.streams[1]
	for _, c := range []struct {
		name  string
		bytes int64
		run   func() error
	}{
		{copyIn, size, func() error { return errors.Join(s.CopyIn(g.src, g.host[0]), s.Synchronize()) }},
		{copyOut, size, func() error { return errors.Join(s.CopyOut(g.host[1], g.src), s.Synchronize()) }},
		{copyBoth, 2 * size, func() error {
			return errors.Join(s.CopyIn(g.src, g.host[0]), t.CopyOut(g.host[1], g.dst), s.Synchronize(), t.Synchronize())
		}},
	} {
		times, err := measure(c.run)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		r.add(c.name, c.bytes, times, "")
	}
	times, err := g.time(func() error { return s.Copy(g.dst, g.src, uint64(2*g.elems)) })
	if err != nil {
		return fmt.Errorf("%s: %w", copyDevice, err)
	}
	r.add(copyDevice, 4*g.elems, times, "")
	return g.fill()
}

// gpuKernel is a kernel, or several in a row, with the bytes per element that it reads
// and writes.
type gpuKernel struct {
	name  string
	bytes float64
	elems int64
	run   func() error
}

func (g *gpuWork) kernels() []gpuKernel {
	var out []gpuKernel
	for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
		for _, f := range []kernels.Float{kernels.BF16, kernels.F16, kernels.F32} {
			for _, bs := range []int64{64, 32, 128, 1024, 4096} {
				if bs != 64 && (f != kernels.BF16 || typ != nf4.NF4) {
					continue
				}
				per := float64(f.Size()) + 0.5 + 4/float64(bs)
				out = append(out,
					gpuKernel{fmt.Sprintf("quantize %v to %v, blocks of %d", f, typ, bs), per, g.elems, func() error { return g.quantize(typ, f, f, g.elems, bs) }},
					gpuKernel{fmt.Sprintf("dequantize %v to %v, blocks of %d", typ, f, bs), per, g.elems, func() error { return g.dequantize(typ, f, bs) }})
			}
		}
	}
	per := 2 + 0.5 + 4/64.0
	// The scales are read again and their codes written: 4 and 1 bytes a block.
	double := func(n int64) gpuKernel {
		return gpuKernel{fmt.Sprintf("quantize bfloat16 to nf4 with double quantization, %d weights", n), per + 5/64.0, n, func() error {
			return errors.Join(g.quantize(nf4.NF4, kernels.BF16, kernels.BF16, n, 64), g.nest(n/64))
		}}
	}
	return append(out,
		gpuKernel{"quantize float32, cast to bfloat16, to nf4, blocks of 64", per + 2, g.elems, func() error { return g.quantize(nf4.NF4, kernels.F32, kernels.BF16, g.elems, 64) }},
		double(g.elems), double(g.large),
		gpuKernel{"convert float32 to bfloat16", 6, g.elems, func() error { return g.convert(kernels.F32, kernels.BF16) }},
		gpuKernel{"finite check of bfloat16", 2, g.elems, g.finite})
}

func (g *gpuWork) quantize(t nf4.Type, from, as kernels.Float, n, bs int64) error {
	l, ok := cuda.QuantizeLaunch(t, from, as, n)
	if !ok {
		return fmt.Errorf("no kernel quantizes %v cast to %v", from, as)
	}
	g.args.Reset().Ptr(g.src).Ptr(g.packed).Ptr(g.absmax).U64(uint64(n)).U32(uint32(bs))
	return g.launch(l)
}

func (g *gpuWork) dequantize(t nf4.Type, to kernels.Float, bs int64) error {
	g.args.Reset().Ptr(g.packed).Ptr(g.absmax).Ptr(g.dst).U64(uint64(g.elems)).U32(uint32(bs))
	return g.launch(cuda.DequantizeLaunch(t, to, g.elems))
}

func (g *gpuWork) convert(from, to kernels.Float) error {
	g.args.Reset().Ptr(g.src).Ptr(g.dst).U64(uint64(g.elems))
	return g.launch(cuda.ConvertLaunch(from, to, g.elems))
}

func (g *gpuWork) finite() error {
	g.args.Reset().Ptr(g.src).U64(uint64(g.elems)).U32(cuda.FiniteLimit(kernels.BF16, kernels.BF16)).Ptr(g.sums)
	return g.launch(cuda.FiniteLaunch(kernels.BF16, g.elems))
}

// nest is the second level over the scales that quantize left.
func (g *gpuWork) nest(blocks int64) error {
	g.args.Reset().Ptr(g.absmax).Ptr(g.sums).U64(uint64(blocks))
	if err := g.launch(cuda.AbsmaxSumLaunch(blocks)); err != nil {
		return err
	}
	g.args.Reset().Ptr(g.absmax).Ptr(g.sums).U32(uint32(cuda.SumLen(blocks))).Ptr(g.dynamic).Ptr(g.codes).Ptr(g.nested).Ptr(g.offset).U64(uint64(blocks)).U64(uint64(blocks))
	return g.launch(cuda.QuantizeAbsmaxLaunch(blocks))
}
