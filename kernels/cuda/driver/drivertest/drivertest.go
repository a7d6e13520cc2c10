// Package drivertest holds what every implementation of driver.Library must do, on
// every driver: the real one and the fake one. Its kernels are probe_axpy, probe_smem
// and probe_params of kernels/cuda/src/probe.cu.
//
// The suite keeps to what the CUDA manual promises, so the work that it checks is
// always synchronized with first. What only a fake driver can show (lost devices,
// leaks, old versions) is tested where the fake is.
package drivertest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// suite is one library under test with the module that has the probes.
type suite struct {
	lib   driver.Library
	image []byte
}

// Run tests lib; image is a module with the probe kernels for its devices. Everything
// it makes is closed again.
func Run(t *testing.T, lib driver.Library, image []byte) {
	s := &suite{lib, image}
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Describe", s.describe},
		{"Index", s.index},
		{"Memory", s.memory},
		{"Copies", s.copies},
		{"Pageable", s.pageable},
		{"Pinned", s.pinned},
		{"Fill", s.fill},
		{"Order", s.order},
		{"AcrossStreams", s.acrossStreams},
		{"Events", s.events},
		{"Axpy", s.axpy},
		{"Params", s.params},
		{"BlockReuse", s.blockReuse},
		{"WrongArguments", s.wrongArguments},
		{"SharedMemory", s.sharedMemory},
		{"Attributes", s.attributes},
		{"Modules", s.modules},
		{"TensorMap", s.tensorMap},
		{"OutOfMemory", s.outOfMemory},
		{"Goroutines", s.goroutines},
		{"Closed", s.closed},
	} {
		t.Run(c.name, c.test)
	}
}

// ok fails the test on an error, and skips it where the implementation is one that may
// say that it cannot do this.
func (s *suite) ok(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if errors.Is(err, driver.ErrUnsupported) && s.lib.Binding() == "gorgonia" {
		t.Skipf("NOT RUN (gorgonia): %v", err)
	}
	t.Fatal(err)
}

func (s *suite) device(t testing.TB, index int) driver.Device {
	t.Helper()
	d, err := s.lib.OpenDevice(index)
	if err != nil {
		t.Fatal(err)
	}
	cleanup(t, d.Close)
	return d
}

func cleanup(t testing.TB, f func() error) {
	t.Cleanup(func() {
		if err := f(); err != nil {
			t.Error(err)
		}
	})
}

func (s *suite) stream(t testing.TB, d driver.Device) driver.Stream {
	t.Helper()
	st, err := d.NewStream()
	s.ok(t, err)
	cleanup(t, st.Close)
	return st
}

func (s *suite) event(t testing.TB, d driver.Device) driver.Event {
	t.Helper()
	e, err := d.NewEvent()
	s.ok(t, err)
	cleanup(t, e.Close)
	return e
}

func (s *suite) alloc(t testing.TB, d driver.Device, size int) driver.Ptr {
	t.Helper()
	p, err := d.Alloc(uint64(size))
	s.ok(t, err)
	cleanup(t, func() error { return d.Free(p) })
	return p
}

// host is page-locked memory; where the implementation has none, other memory.
func (s *suite) host(t testing.TB, d driver.Device, size int) []byte {
	t.Helper()
	b, err := d.AllocHost(size)
	if errors.Is(err, driver.ErrUnsupported) && s.lib.Binding() == "gorgonia" {
		return make([]byte, size)
	}
	s.ok(t, err)
	cleanup(t, func() error { return d.FreeHost(b) })
	return b
}

func (s *suite) function(t testing.TB, d driver.Device, name string) driver.Function {
	t.Helper()
	m, err := d.LoadModule(s.image)
	s.ok(t, err)
	cleanup(t, m.Close)
	f, err := m.Function(name)
	s.ok(t, err)
	return f
}

func random(seed uint64, b []byte) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	n := min(len(got), len(want))
	at := 0
	for at < n && got[at] == want[at] {
		at++
	}
	t.Fatalf("%s: %d bytes, want %d; they differ from byte %d: %x, want %x", what, len(got), len(want), at, got[at:min(at+8, len(got))], want[at:min(at+8, len(want))])
}

func (s *suite) describe(t *testing.T) {
	if s.lib.Version() < driver.MinVersion || s.lib.Path() == "" || s.lib.Binding() == "" {
		t.Errorf("version %v, path %q, binding %q", s.lib.Version(), s.lib.Path(), s.lib.Binding())
	}
	if len(s.lib.Devices()) == 0 {
		t.Fatal("no devices, and Open was content")
	}
	uuids := map[[16]byte]int{}
	for i, info := range s.lib.Devices() {
		t.Logf("%+v", info)
		if info.Index != i || info.Name == "" || strings.ContainsRune(info.Name, 0) || info.Major < 5 || info.TotalMemory == 0 || info.SMs < 1 {
			t.Errorf("device %d: %+v", i, info)
		}
		if info.ClockKHz <= 0 || info.PeakBandwidth() < 0 || info.L2Bytes < 0 || info.SharedOptIn < 48<<10 {
			t.Errorf("device %d: %+v", i, info)
		}
		if other, ok := uuids[info.UUID]; ok {
			t.Errorf("devices %d and %d have the same UUID %s", other, i, info.UUIDString())
		}
		uuids[info.UUID] = i
		if strings.Count(info.PCIBusID, ":") != 2 || strings.Count(info.PCIBusID, ".") != 1 {
			t.Errorf("device %d: PCI bus id %q", i, info.PCIBusID)
		}
		d := s.device(t, i)
		if d.Info() != info {
			t.Errorf("device %d describes itself as %+v", i, d.Info())
		}
	}
}

func (s *suite) index(t *testing.T) {
	for _, i := range []int{-1, len(s.lib.Devices())} {
		if _, err := s.lib.OpenDevice(i); !errors.Is(err, driver.ErrNoDevice) {
			t.Errorf("device %d: %v, want ErrNoDevice", i, err)
		}
	}
}

func (s *suite) memory(t *testing.T) {
	d := s.device(t, 0)
	free, total, err := d.MemInfo()
	s.ok(t, err)
	if free > total || total == 0 || total > d.Info().TotalMemory {
		t.Errorf("%d of %d bytes free on a device of %d", free, total, d.Info().TotalMemory)
	}
	p := s.alloc(t, d, 64<<20)
	if p%256 != 0 {
		t.Errorf("the allocation is at 0x%x, want a multiple of 256", p)
	}
	after, _, err := d.MemInfo()
	s.ok(t, err)
	// Other processes may use the device too; what they free meanwhile is not expected.
	if after > free-(32<<20) {
		t.Errorf("%d bytes free, then %d after allocating 64 MiB", free, after)
	}
	if _, err := d.Alloc(0); err == nil {
		t.Error("allocating 0 bytes is fine")
	}
	if _, err := d.AllocHost(0); err == nil {
		t.Error("allocating 0 bytes of host memory is fine")
	}
}

var sizes = []int{1, 2, 3, 5, 7, 8, 15, 31, 64, 100, 127, 255, 256, 257, 1000, 4095, 4097, 65537, 1<<20 + 13}

// copies goes out and back by way of the device, at odd sizes and odd addresses.
func (s *suite) copies(t *testing.T) {
	d := s.device(t, 0)
	st := s.stream(t, d)
	const shift = 3
	for _, n := range sizes {
		in, out := s.host(t, d, n+shift), s.host(t, d, n+2*shift)
		a, b := s.alloc(t, d, n+shift), s.alloc(t, d, n+shift)
		random(uint64(n), in)
		for i := range out {
			out[i] = 0xee
		}
		s.ok(t, st.CopyIn(a+shift, in[shift:]))
		s.ok(t, st.Copy(b, a+shift, uint64(n)))
		s.ok(t, st.CopyOut(out[shift:shift+n], b))
		s.ok(t, st.Synchronize())
		same(t, fmt.Sprintf("%d bytes", n), out[shift:shift+n], in[shift:])
		edge := bytes.Repeat([]byte{0xee}, shift)
		same(t, "before the copy", out[:shift], edge)
		same(t, "behind the copy", out[shift+n:], edge)
	}
	s.ok(t, st.CopyIn(0, nil))
	s.ok(t, st.CopyOut(nil, 0))
	s.ok(t, st.Copy(0, 0, 0))
	s.ok(t, st.Fill(0, 1, 0))
}

// pageable memory is the caller's again when the call returns.
func (s *suite) pageable(t *testing.T) {
	d := s.device(t, 0)
	st, before := s.stream(t, d), s.event(t, d)
	for _, n := range sizes {
		p := s.alloc(t, d, n)
		want := random(uint64(n), make([]byte, n))
		in, out := bytes.Clone(want), make([]byte, n)
		s.ok(t, st.Fill(p, 0, uint64(n)))
		s.ok(t, st.Record(before))
		s.ok(t, st.CopyIn(p, in))
		if done, err := before.Done(); err != nil || !done {
			t.Errorf("%d bytes: the copy returned, and what came before it is not done (%v)", n, err)
		}
		clear(in)
		s.ok(t, st.CopyOut(out, p))
		same(t, fmt.Sprintf("%d bytes", n), out, want)
	}
}

// pinned memory serves every device, in whole and in part.
func (s *suite) pinned(t *testing.T) {
	const n = 1<<16 + 5
	first := s.device(t, 0)
	b, err := first.AllocHost(n)
	s.ok(t, err)
	cleanup(t, func() error { return first.FreeHost(b) })
	if len(b) != n || cap(b) != n {
		t.Errorf("length %d, capacity %d, want %d", len(b), cap(b), n)
	}
	if err := first.FreeHost(b[1:]); err == nil {
		t.Error("freeing from the second byte on is fine")
	}
	if err := first.FreeHost(make([]byte, 8)); err == nil {
		t.Error("freeing a slice of Go is fine")
	}
	for i := range s.lib.Devices() {
		d := s.device(t, i)
		st := s.stream(t, d)
		p := s.alloc(t, d, n/2)
		want := bytes.Clone(random(uint64(i), b)[:n/2])
		s.ok(t, st.CopyIn(p, b[:n/2]))
		s.ok(t, st.CopyOut(b[n-n/2:], p))
		s.ok(t, st.Synchronize())
		same(t, fmt.Sprintf("device %d", i), b[n-n/2:], want)
	}
}

func (s *suite) fill(t *testing.T) {
	d := s.device(t, 0)
	st := s.stream(t, d)
	const n = 1001
	p, out := s.alloc(t, d, n), make([]byte, n)
	s.ok(t, st.Fill(p, 0x5a, n))
	s.ok(t, st.Fill(p+7, 0xff, 301))
	s.ok(t, st.CopyOut(out, p))
	want := bytes.Repeat([]byte{0x5a}, n)
	copy(want[7:], bytes.Repeat([]byte{0xff}, 301))
	same(t, "filled", out, want)
}

func (s *suite) outOfMemory(t *testing.T) {
	d := s.device(t, 0)
	size := 2 * d.Info().TotalMemory
	_, err := d.Alloc(size)
	if !errors.Is(err, driver.ErrOutOfMemory) || errors.Is(err, driver.ErrDeviceLost) {
		t.Fatalf("allocating twice the memory of the device: %v, want ErrOutOfMemory", err)
	}
	e, ok := errors.AsType[*driver.Error](err)
	if !ok || e.Code != 2 || e.Name != "CUDA_ERROR_OUT_OF_MEMORY" || e.Call == "" || e.Device != 0 {
		t.Errorf("%#v", e)
	}
	for _, part := range []string{fmt.Sprint(size), "device 0", "out of memory", "free"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	s.alloc(t, d, 1<<20) // the context is unharmed
}

func (s *suite) closed(t *testing.T) {
	d, err := s.lib.OpenDevice(0)
	s.ok(t, err)
	s.ok(t, d.Close())
	s.ok(t, d.Close())
	if _, err := d.Alloc(1); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("allocating on a closed device: %v", err)
	}
	// Two handles of one device share its context; the second lives on.
	a, err := s.lib.OpenDevice(0)
	s.ok(t, err)
	b := s.device(t, 0)
	p := s.alloc(t, b, 100)
	s.ok(t, a.Close())
	s.ok(t, s.stream(t, b).Fill(p, 1, 100))
	s.ok(t, b.Synchronize())
}

// goroutines work on all devices at once, each with its own stream and memory.
func (s *suite) goroutines(t *testing.T) {
	const workers, rounds, n = 16, 8, 1000
	var devices []driver.Device
	var kernels []driver.Function
	for i := range s.lib.Devices() {
		devices = append(devices, s.device(t, i))
		kernels = append(kernels, s.function(t, devices[i], "probe_axpy"))
	}
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		i := w % len(devices)
		d, k := devices[i], kernels[i]
		st, x, y := s.stream(t, d), s.alloc(t, d, 4*n), s.alloc(t, d, 4*n)
		b := s.host(t, d, 4*n)
		wg.Go(func() {
			args := driver.NewArgs()
			for r := range rounds {
				for j := range n {
					binary.LittleEndian.PutUint32(b[4*j:], f32(float32(w*1000+r*100+j%64)))
				}
				want := bytes.Clone(b)
				for _, err := range []error{
					st.CopyIn(x, b), st.Fill(y, 0, 4*n),
					st.Launch(k, driver.D1(8), driver.D1(128), 0, args.Reset().Ptr(y).Ptr(x).F32(1).U32(n)),
					st.CopyOut(b, y), st.Synchronize(),
				} {
					errs[w] = errors.Join(errs[w], err)
				}
				if errs[w] == nil && !bytes.Equal(b, want) {
					errs[w] = fmt.Errorf("worker %d, round %d: wrong result", w, r)
				}
			}
		})
	}
	wg.Wait()
	s.ok(t, errors.Join(errs...))
}
