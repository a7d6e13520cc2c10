//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver_test

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// must returns v of a call that has to work.
func must[V any](v V, err error) V {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestLostDevice(t *testing.T) {
	for _, code := range []string{"700", "719", "214", "999"} {
		t.Run(code, func(t *testing.T) {
			lib := cudatest.Open(t, "FAKECUDA_DEVICES=2", "FAKECUDA_FAIL=cuLaunchKernel:2@1="+code)
			lib.Careless() // what a lost device holds cannot be freed
			var st [2]driver.Stream
			var k [2]driver.Function
			var d [2]driver.Device
			var p [2]driver.Ptr
			for i := range 2 {
				d[i] = must(lib.OpenDevice(i))
				st[i], p[i] = must(d[i].NewStream()), must(d[i].Alloc(4))
				k[i] = must(must(d[i].LoadModule(cudatest.Image)).Function("probe_axpy"))
			}
			launch := func(i int) error {
				return st[i].Launch(k[i], driver.D1(1), driver.D1(32), 0, driver.NewArgs().Ptr(p[i]).Ptr(p[i]).F32(0).U32(1))
			}
			check(t, launch(1), st[1].Synchronize(), launch(0), launch(0))
			check(t, launch(1)) // the launch is asynchronous: nobody knows yet
			e := must(d[0].NewEvent())
			check(t, st[0].Record(e))
			_, alloc := d[1].Alloc(1)
			if alloc != nil {
				t.Fatalf("lost before the work was done: %v", alloc)
			}
			lost := st[1].Synchronize()
			_, alloc = d[1].Alloc(1)
			_, again := lib.OpenDevice(1)
			for _, err := range []error{lost, alloc, again, launch(1), d[1].Free(p[1]), d[1].Synchronize(), st[1].Close(), d[1].Close()} {
				if !errors.Is(err, driver.ErrDeviceLost) || !strings.Contains(err.Error(), "device 1") {
					t.Errorf("%v: want ErrDeviceLost of device 1", err)
				}
			}
			check(t, launch(0), st[0].Synchronize(), d[0].Free(p[0]), d[0].Close())
		})
	}
}

func TestInjectedFailures(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_FAIL=cuMemAlloc_v2:3=2,cuStreamCreate:1=801")
	d := must(lib.OpenDevice(0))
	defer d.Close()
	for i := range 4 {
		p, err := d.Alloc(10)
		if want := i == 2; errors.Is(err, driver.ErrOutOfMemory) != want || (err != nil) != want {
			t.Errorf("allocation %d: %v", i+1, err)
		}
		if err == nil {
			check(t, d.Free(p))
		}
	}
	if _, err := d.NewStream(); !errors.Is(err, driver.ErrUnsupported) {
		t.Errorf("%v: want ErrUnsupported", err)
	}
}

// Real memory runs out when all of it is taken, not before.
func TestMemoryCap(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_MEMORY=1000")
	d := must(lib.OpenDevice(0))
	defer d.Close()
	p := must(d.Alloc(600))
	if _, err := d.Alloc(401); !errors.Is(err, driver.ErrOutOfMemory) || !strings.Contains(err.Error(), "400 of 1000 free") {
		t.Errorf("%v", err)
	}
	if _, err := d.Alloc(1<<32 + 1); !errors.Is(err, driver.ErrOutOfMemory) {
		t.Errorf("4 GiB and a byte: %v", err)
	}
	q := must(d.Alloc(400))
	check(t, d.Free(p), d.Free(q))
}

// The fake finds what a GPU lets pass. Each case does one thing wrong.
func TestFakeFindsMisuse(t *testing.T) {
	type bench struct {
		a, b driver.Device
		st   driver.Stream
		k    driver.Function
		p, q driver.Ptr // 40 bytes on a and on b
	}
	for _, c := range []struct {
		name string
		do   func(bench) error
		fine bool // the call itself succeeds
	}{
		{"foreign pointer", func(b bench) error { return b.st.Fill(b.q, 0, 4) }, false},
		{"no pointer", func(b bench) error { return b.st.Fill(4096, 0, 4) }, false},
		{"too far", func(b bench) error { return b.st.CopyIn(b.p+1, make([]byte, 40)) }, false},
		{"freed by another device", func(b bench) error { return b.b.Free(b.p) }, false},
		{"freed in the middle", func(b bench) error { return b.a.Free(b.p + 4) }, false},
		{"freed twice", func(b bench) error {
			p := must(b.a.Alloc(8))
			must(0, b.a.Free(p))
			return b.a.Free(p)
		}, false},
		{"used after free", func(b bench) error {
			p := must(b.a.Alloc(8))
			must(0, b.a.Free(p))
			must(b.a.Alloc(8))
			return b.st.Fill(p, 0, 8)
		}, false},
		{"stream used after close", func(b bench) error {
			st := must(b.a.NewStream())
			must(0, st.Close())
			return st.Fill(b.p, 0, 1)
		}, false},
		{"kernel writes past the end", func(b bench) error {
			must(0, b.st.Fill(b.p, 0, 40))
			must(0, b.st.Launch(b.k, driver.D1(1), driver.D1(32), 0, driver.NewArgs().Ptr(b.p).Ptr(b.p).F32(1).U32(11)))
			return b.st.Synchronize()
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.fine && os.Getenv("NF4CONV_TEST_SANITIZE") != "" {
				t.Skip("NOT RUN: AddressSanitizer ends the process for this")
			}
			lib := cudatest.Open(t, "FAKECUDA_DEVICES=2")
			lib.Careless()
			a, b := must(lib.OpenDevice(0)), must(lib.OpenDevice(1))
			k := must(must(a.LoadModule(cudatest.Image)).Function("probe_axpy"))
			err := c.do(bench{a, b, must(a.NewStream()), k, must(a.Alloc(40)), must(b.Alloc(40))})
			if n := lib.Count("violations"); n != 1 || (err == nil) != c.fine {
				t.Errorf("%d violations, error %v", n, err)
			}
			check(t, a.Close(), b.Close())
		})
	}
}

// Without a synchronization the result is not there yet, and the source is still needed.
func TestFakeFindsMissingSynchronization(t *testing.T) {
	lib := cudatest.Open(t)
	d := must(lib.OpenDevice(0))
	st, other, e := must(d.NewStream()), must(d.NewStream()), must(d.NewEvent())
	in, out, p := must(d.AllocHost(8)), must(d.AllocHost(8)), must(d.Alloc(8))
	copy(in, "original")
	check(t, st.CopyIn(p, in), st.CopyOut(out, p))
	if bytes.Equal(out, in) {
		t.Error("the result is there before a synchronization")
	}
	copy(in, "replaced")
	check(t, st.Synchronize())
	if string(out) != "replaced" {
		t.Errorf("%q: the copy took the memory as it was at the call", out)
	}
	copy(in, "the next")
	check(t, st.CopyIn(p, in), st.Record(e))
	check(t, other.CopyOut(out, p), other.Synchronize())
	if string(out) != "replaced" {
		t.Errorf("%q: another stream waited without being told to", out)
	}
	check(t, other.Wait(e), other.CopyOut(out, p), other.Synchronize())
	if string(out) != "the next" {
		t.Errorf("%q: the other stream did not wait", out)
	}
	check(t, st.Close(), other.Close(), e.Close(), d.FreeHost(in), d.FreeHost(out), d.Free(p), d.Close())
}

func TestFakeCountsLeaks(t *testing.T) {
	lib := cudatest.Open(t)
	lib.Careless()
	d := must(lib.OpenDevice(0))
	must(d.Alloc(1))
	must(d.AllocHost(1))
	must(d.NewStream())
	must(d.NewEvent())
	must(d.LoadModule(cudatest.Image))
	for _, what := range []string{"memory", "host", "streams", "events", "modules", "contexts"} {
		if n := lib.Count(what); n != 1 {
			t.Errorf("%d %s alive, want 1", n, what)
		}
	}
	check(t, d.Close())
	if n := lib.Count("leaks"); n != 5 || lib.Count("memory") != 0 {
		t.Errorf("%d leaks, want 5; %d allocations alive, want 0", n, lib.Count("memory"))
	}
}

// Host memory whose context is gone is not page-locked any more: it must not be taken for it.
func TestPinnedMemoryOfAClosedDevice(t *testing.T) {
	lib := cudatest.Open(t)
	lib.Careless()
	d := must(lib.OpenDevice(0))
	b := must(d.AllocHost(16))
	check(t, d.Close())
	d = must(lib.OpenDevice(0))
	if err := d.FreeHost(b); err == nil {
		t.Error("memory of a context that is gone could be freed")
	}
	if n := lib.Count("violations"); n != 0 {
		t.Error("the driver was asked to free it")
	}
	check(t, d.Close())
}

func TestCallsDoNotAllocate(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_STREAMS=immediate")
	d := must(lib.OpenDevice(0))
	m := must(d.LoadModule(cudatest.Image))
	k, st, e, h, p := must(m.Function("probe_axpy")), must(d.NewStream()), must(d.NewEvent()), must(d.AllocHost(64)), must(d.Alloc(64))
	args := driver.NewArgs()
	for name, f := range map[string]func() error{
		"Launch": func() error {
			return st.Launch(k, driver.D1(1), driver.D1(16), 0, args.Reset().Ptr(p).Ptr(p).F32(1).U32(16))
		},
		"CopyIn":      func() error { return st.CopyIn(p, h) },
		"CopyOut":     func() error { return st.CopyOut(h, p) },
		"Copy":        func() error { return st.Copy(p, p+32, 32) },
		"Fill":        func() error { return st.Fill(p, 0, 64) },
		"Record":      func() error { return st.Record(e) },
		"Wait":        func() error { return st.Wait(e) },
		"Synchronize": st.Synchronize,
	} {
		if n := testing.AllocsPerRun(100, func() { check(t, f()) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	check(t, st.Close(), e.Close(), m.Close(), d.FreeHost(h), d.Free(p), d.Close())
}

// A call must stay on the thread on which it made its context current, even when the
// scheduler has time to take the processor away in between.
func TestCallsHoldTheirThread(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_DEVICES=2", "FAKECUDA_DELAY=300")
	var wg sync.WaitGroup
	for i := range 8 * runtime.GOMAXPROCS(0) {
		d := must(lib.OpenDevice(i % 2))
		wg.Go(func() {
			for range 20 {
				p, err := d.Alloc(8)
				if err == nil {
					err = d.Free(p)
				}
				if err != nil {
					t.Error(err)
					break
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func BenchmarkLaunch(b *testing.B) {
	lib, err := driver.Open()
	if err != nil {
		lib = cudatest.Open(b, "FAKECUDA_STREAMS=immediate")
	}
	d := must(lib.OpenDevice(0))
	m := must(d.LoadModule(image(b, lib)))
	k, st, p := must(m.Function("probe_axpy")), must(d.NewStream()), must(d.Alloc(64))
	args := driver.NewArgs()
	b.ReportAllocs()
	for b.Loop() {
		if err := st.Launch(k, driver.D1(1), driver.D1(1), 0, args.Reset().Ptr(p).Ptr(p).F32(1).U32(1)); err != nil {
			b.Fatal(err)
		}
	}
	must(0, errors.Join(st.Synchronize(), st.Close(), m.Close(), d.Free(p), d.Close()))
}
