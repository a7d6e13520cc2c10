package drivertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

func f32(v float32) uint32 { return math.Float32bits(v) }

func floats(b []byte) []float32 {
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// order gives one stream work of every kind, each step needing the one before.
func (s *suite) order(t *testing.T) {
	d := s.device(t, 0)
	st, k := s.stream(t, d), s.function(t, d, "probe_axpy")
	const n = 5000
	in, mid, out := s.host(t, d, 4*n), s.host(t, d, 4*n), s.host(t, d, 4*n)
	x, y := s.alloc(t, d, 4*n), s.alloc(t, d, 4*n)
	for i := range n {
		binary.LittleEndian.PutUint32(in[4*i:], f32(float32(i)))
	}
	args := driver.NewArgs()
	s.ok(t, st.Fill(y, 0, 4*n))
	s.ok(t, st.CopyIn(x, in))
	for range 3 { // y = 3x, x = 4x, ... : y += 3x; x += y
		s.ok(t, st.Launch(k, driver.D1(20), driver.D1(256), 0, args.Reset().Ptr(y).Ptr(x).F32(3).U32(n)))
		s.ok(t, st.Launch(k, driver.D1(20), driver.D1(256), 0, args.Reset().Ptr(x).Ptr(y).F32(1).U32(n)))
	}
	s.ok(t, st.CopyOut(mid, x))
	s.ok(t, st.Copy(y, x, 4*n))
	s.ok(t, st.Fill(x, 0, 4*n))
	s.ok(t, st.CopyOut(out, y))
	s.ok(t, st.Synchronize())
	var wx, wy float32 = 1, 0
	for range 3 {
		wy += 3 * wx
		wx += wy
	}
	for i, v := range floats(out) {
		if want := wx * float32(i); v != want {
			t.Fatalf("element %d is %v, want %v", i, v, want)
		}
	}
	same(t, "the copy before the fill", mid, out)
}

// acrossStreams hands data from stream to stream by events.
func (s *suite) acrossStreams(t *testing.T) {
	d := s.device(t, 0)
	a, b, c := s.stream(t, d), s.stream(t, d), s.stream(t, d)
	in, mid, used := s.event(t, d), s.event(t, d), s.event(t, d)
	k := s.function(t, d, "probe_axpy")
	const n = 1 << 16
	h, out := s.host(t, d, 4*n), s.host(t, d, 4*n)
	x, y := s.alloc(t, d, 4*n), s.alloc(t, d, 4*n)
	args := driver.NewArgs()
	for round := range 4 {
		for i := range n {
			binary.LittleEndian.PutUint32(h[4*i:], f32(float32(i+round)))
		}
		if round > 0 {
			s.ok(t, a.Wait(used))
			s.ok(t, b.Wait(used))
		}
		s.ok(t, a.CopyIn(x, h))
		s.ok(t, a.Record(in))
		s.ok(t, b.Fill(y, 0, 4*n))
		s.ok(t, b.Wait(in))
		s.ok(t, b.Launch(k, driver.D1(n/256), driver.D1(256), 0, args.Reset().Ptr(y).Ptr(x).F32(2).U32(n)))
		s.ok(t, b.Record(mid))
		s.ok(t, c.Wait(mid))
		s.ok(t, c.CopyOut(out, y))
		s.ok(t, c.Record(used))
		s.ok(t, used.Synchronize())
		for i, v := range floats(out) {
			if want := 2 * float32(i+round); v != want {
				t.Fatalf("round %d, element %d is %v, want %v", round, i, v, want)
			}
		}
	}
}

func (s *suite) events(t *testing.T) {
	d := s.device(t, 0)
	st := s.stream(t, d)
	first, last := s.event(t, d), s.event(t, d)
	if done, err := first.Done(); err != nil || !done {
		t.Errorf("an event that was never recorded: %v, %v", done, err)
	}
	s.ok(t, st.Wait(first))
	p := s.alloc(t, d, 1<<20)
	s.ok(t, st.Record(first))
	s.ok(t, st.Fill(p, 1, 1<<20))
	s.ok(t, st.Record(last))
	for {
		done, err := last.Done()
		s.ok(t, err)
		if done {
			break
		}
	}
	s.ok(t, last.Synchronize())
	elapsed, err := last.Since(first)
	s.ok(t, err)
	if elapsed <= 0 {
		t.Errorf("%v from first to last", elapsed)
	}
	never := s.event(t, d)
	if _, err := never.Since(first); err == nil {
		t.Error("the time to an event that was never recorded is known")
	}
}

func (s *suite) axpy(t *testing.T) {
	d := s.device(t, 0)
	st, k := s.stream(t, d), s.function(t, d, "probe_axpy")
	for _, n := range []int{1, 31, 32, 33, 255, 257, 12345} {
		x, y := s.alloc(t, d, 4*n), s.alloc(t, d, 4*n)
		hx, hy := random(uint64(n), make([]byte, 4*n)), make([]byte, 4*n)
		for i := range n { // finite numbers with all their bits in use
			binary.LittleEndian.PutUint32(hx[4*i:], binary.LittleEndian.Uint32(hx[4*i:])&0x3fffffff)
			binary.LittleEndian.PutUint32(hy[4*i:], f32(float32(i)/7))
		}
		s.ok(t, st.CopyIn(x, hx))
		s.ok(t, st.CopyIn(y, hy))
		const a = float32(0.3)
		s.ok(t, st.Launch(k, driver.D1(uint32(n+127)/128), driver.D1(128), 0, driver.NewArgs().Ptr(y).Ptr(x).F32(a).U32(uint32(n))))
		out := make([]byte, 4*n)
		s.ok(t, st.CopyOut(out, y))
		fx, fy := floats(hx), floats(hy)
		for i, v := range floats(out) {
			product := float32(a * fx[i])
			if want := product + fy[i]; v != want {
				t.Fatalf("%d elements: y[%d] = %v, want %v", n, i, v, want)
			}
		}
	}
}

// wide are the words that probe_params takes by value.
func wide() []byte {
	b := make([]byte, 128)
	for i := range 16 {
		binary.LittleEndian.PutUint64(b[8*i:], uint64(i+1)*0x0123456789abcdef)
	}
	return b
}

func (s *suite) params(t *testing.T) {
	d := s.device(t, 0)
	st, k := s.stream(t, d), s.function(t, d, "probe_params")
	p := s.alloc(t, d, 21*8)
	words := wide()
	args := driver.NewArgs()
	for _, v := range []struct {
		a uint8
		b uint16
		c uint32
		d uint64
		e float32
	}{
		{0, 0, 0, 0, 0},
		{0xff, 0xffff, 0xffffffff, math.MaxUint64, float32(math.Inf(-1))},
		{1, 2, 3, 4, 5},
		{0x80, 0x8000, 0x80000000, 1 << 63, math.SmallestNonzeroFloat32},
	} {
		s.ok(t, st.Fill(p, 0xcc, 21*8))
		args.Reset().Ptr(p).U8(v.a).U16(v.b).U32(v.c).U64(v.d).F32(v.e).Bytes(words, 8)
		s.ok(t, st.Launch(k, driver.D1(1), driver.D1(1), 0, args))
		out := make([]byte, 21*8)
		s.ok(t, st.CopyOut(out, p))
		for i, want := range []uint64{uint64(v.a), uint64(v.b), uint64(v.c), v.d, uint64(f32(v.e))} {
			if got := binary.LittleEndian.Uint64(out[8*i:]); got != want {
				t.Errorf("%+v: argument %d arrived as %#x, want %#x", v, i+1, got, want)
			}
		}
		same(t, "the structure", out[40:], words)
	}
}

// blockReuse fills the block with something else before the work is done.
func (s *suite) blockReuse(t *testing.T) {
	d := s.device(t, 0)
	st, k := s.stream(t, d), s.function(t, d, "probe_smem")
	const n, launches = 64, 100
	p := s.alloc(t, d, 4*n*launches)
	args := driver.NewArgs()
	for i := range launches {
		s.ok(t, st.Launch(k, driver.D1(1), driver.D1(32), 4*n, args.Reset().Ptr(p+driver.Ptr(4*n*i)).U32(uint32(n-i%n))))
	}
	args.Reset().U64(math.MaxUint64).U32(math.MaxUint32)
	out := make([]byte, 4*n*launches)
	s.ok(t, st.CopyOut(out, p))
	for i := range launches {
		checkReversed(t, out[4*n*i:], n-i%n)
	}
}

func checkReversed(t *testing.T, out []byte, n int) {
	t.Helper()
	for i := range n {
		if got, want := binary.LittleEndian.Uint32(out[4*i:]), uint32(n-1-i)*2654435761; got != want {
			t.Fatalf("word %d of %d is %#x, want %#x", i, n, got, want)
		}
	}
}

func (s *suite) wrongArguments(t *testing.T) {
	d := s.device(t, 0)
	st, k := s.stream(t, d), s.function(t, d, "probe_axpy")
	p := s.alloc(t, d, 4)
	big := make([]byte, 4097)
	for _, c := range []struct {
		args *driver.Args
		want string
	}{
		{driver.NewArgs().Bytes(big, 1), "4097"},
		{driver.NewArgs().Bytes(nil, 1), "argument 0"},
		{driver.NewArgs().U8(1).Bytes(big[:8], 3), "alignment 3"},
		{driver.NewArgs().Bytes(big[:8], 128), "alignment 128"},
	} {
		if err := st.Launch(k, driver.D1(1), driver.D1(1), 0, c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v does not say %q", err, c.want)
		}
	}
	good := driver.NewArgs().Ptr(p).Ptr(p).F32(0).U32(1)
	for _, c := range []struct {
		grid, block driver.Dim
		shared      uint32
	}{
		{driver.D1(1), driver.D1(2048), 0},
		{driver.D1(1), driver.Dim{X: 64, Y: 64}, 0},
		{driver.D1(1), driver.D1(1), 1 << 30},
	} {
		err := st.Launch(k, c.grid, c.block, c.shared, good)
		if _, ok := errors.AsType[*driver.Error](err); !ok || !strings.Contains(err.Error(), "probe_axpy") {
			t.Errorf("grid %v, block %v, %d bytes shared: %v", c.grid, c.block, c.shared, err)
		}
	}
	if s.lib.Binding() == "purego" && s.lib.Version() >= 12040 {
		for _, a := range []*driver.Args{driver.NewArgs().Ptr(p).Ptr(p).F32(0), driver.NewArgs().Ptr(p).Ptr(p).F32(0).U64(1), driver.NewArgs().Ptr(p).Ptr(p).F32(0).U32(1).U32(1)} {
			if err := st.Launch(k, driver.D1(1), driver.D1(1), 0, a); err == nil || !strings.Contains(err.Error(), "[8 8 4 4]") {
				t.Errorf("%d arguments: %v", a.Len(), err)
			}
		}
	}
	s.ok(t, st.Synchronize())
}

// sharedMemory goes beyond the 48 KiB that need no asking for.
func (s *suite) sharedMemory(t *testing.T) {
	d := s.device(t, 0)
	st, k := s.stream(t, d), s.function(t, d, "probe_smem")
	most := d.Info().SharedOptIn
	p := s.alloc(t, d, most)
	for _, bytes := range []int{4, 4096, 48 << 10, most} {
		args := driver.NewArgs().Ptr(p).U32(uint32(bytes / 4))
		if bytes > 48<<10 {
			if err := st.Launch(k, driver.D1(1), driver.D1(128), uint32(bytes), args); err == nil {
				t.Errorf("%d bytes of shared memory without asking are fine", bytes)
			}
			s.ok(t, k.SetAttribute(driver.MaxDynamicShared, bytes))
			got, err := k.Attribute(driver.MaxDynamicShared)
			s.ok(t, err)
			if got != bytes {
				t.Errorf("the attribute is %d, want %d", got, bytes)
			}
		}
		s.ok(t, st.Launch(k, driver.D1(1), driver.D1(128), uint32(bytes), args))
		out := make([]byte, bytes)
		s.ok(t, st.CopyOut(out, p))
		checkReversed(t, out, bytes/4)
	}
	if err := k.SetAttribute(driver.MaxDynamicShared, most+1); err == nil {
		t.Errorf("%d bytes of shared memory are fine on a device that has %d", most+1, most)
	}
}

func (s *suite) attributes(t *testing.T) {
	k := s.function(t, s.device(t, 0), "probe_axpy")
	if k.Name() != "probe_axpy" {
		t.Errorf("name %q", k.Name())
	}
	for a, limits := range map[driver.Attribute][2]int{
		driver.MaxThreadsPerBlock: {32, 1024}, driver.StaticShared: {0, 48 << 10}, driver.Registers: {1, 255}, driver.LocalBytes: {0, 0},
	} {
		v, err := k.Attribute(a)
		s.ok(t, err)
		if v < limits[0] || v > limits[1] {
			t.Errorf("attribute %d is %d, want %d to %d", a, v, limits[0], limits[1])
		}
	}
	if _, err := k.Attribute(9999); err == nil || !strings.Contains(err.Error(), "probe_axpy") {
		t.Errorf("attribute 9999: %v", err)
	}
}

func (s *suite) modules(t *testing.T) {
	d := s.device(t, 0)
	if _, err := d.LoadModule([]byte("no module at all, whoever reads it")); err == nil {
		t.Error("any text loads as a module")
	}
	m, err := d.LoadModule(s.image)
	s.ok(t, err)
	cleanup(t, m.Close)
	_, err = m.Function("no_such_kernel")
	e, ok := errors.AsType[*driver.Error](err)
	if !ok || e.Code != 500 || !strings.Contains(err.Error(), `"no_such_kernel"`) {
		t.Errorf("a kernel that is not there: %v", err)
	}
}

func (s *suite) tensorMap(t *testing.T) {
	d := s.device(t, 0)
	if _, err := d.EncodeTensorMap(driver.TensorMapSpec{Dims: []uint64{4}, Box: []uint32{1, 1}}); err == nil {
		t.Error("one dimension with two box sizes is fine")
	}
	if d.Info().Major < 9 {
		t.Skipf("NOT RUN: compute capability %d.%d has no tensor maps", d.Info().Major, d.Info().Minor)
	}
	p := s.alloc(t, d, 64*128*2)
	spec := driver.TensorMapSpec{Type: 6, Address: p, Dims: []uint64{64, 128}, Strides: []uint64{128}, Box: []uint32{64, 64}, Swizzle: 3}
	a, err := d.EncodeTensorMap(spec)
	s.ok(t, err)
	b, err := d.EncodeTensorMap(spec)
	s.ok(t, err)
	if a != b || a == (driver.TensorMap{}) {
		t.Errorf("two encodings of the same tensor: %x, %x", a, b)
	}
	spec.Strides[0] = 127
	if _, err := d.EncodeTensorMap(spec); err == nil {
		t.Error("a stride of 127 bytes is fine")
	}
	if n := driver.NewArgs().U8(1).TensorMap(&a).Len(); n != 2 {
		t.Fatal(fmt.Sprint(n))
	}
}
