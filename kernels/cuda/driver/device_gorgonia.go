//go:build gorgonia && cgo && linux && (amd64 || arm64) && !nocuda

package driver

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"gorgonia.org/cu"
)

type device struct {
	lib    *library
	info   Info
	handle cu.Device
	ctx    cu.CUContext
	closed atomic.Bool
}

func (l *library) OpenDevice(index int) (Device, error) {
	if index < 0 || index >= len(l.infos) {
		return nil, fmt.Errorf("%w: index %d: there are %d", ErrNoDevice, index, len(l.infos))
	}
	ctx, err := l.handles[index].RetainPrimaryCtx()
	if err != nil {
		return nil, failed("cuDevicePrimaryCtxRetain", index, err)
	}
	return &device{lib: l, info: l.infos[index], handle: l.handles[index], ctx: ctx}, nil
}

// do makes the context current on the thread and runs f, which makes one call.
func (d *device) do(call string, f func() error) error {
	if d.closed.Load() {
		return fmt.Errorf("%s on device %d: %w", call, d.info.Index, ErrClosed)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cu.SetCurrentContext(d.ctx); err != nil {
		return failed("cuCtxSetCurrent", d.info.Index, err)
	}
	if err := f(); err != nil {
		return failed(call, d.info.Index, err)
	}
	return nil
}

func (d *device) Info() Info { return d.info }

func (d *device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	if err := d.handle.ReleasePrimaryCtx(); err != nil {
		return failed("cuDevicePrimaryCtxRelease", d.info.Index, err)
	}
	return nil
}

func (d *device) Synchronize() error { return d.do("cuCtxSynchronize", cu.Synchronize) }

func (d *device) MemInfo() (free, total uint64, err error) {
	err = d.do("cuMemGetInfo", func() error {
		f, t, err := cu.MemInfo()
		free, total = uint64(f), uint64(t)
		return err
	})
	return free, total, err
}

func (d *device) Alloc(size uint64) (p Ptr, err error) {
	err = d.do("cuMemAlloc", func() error {
		q, err := cu.MemAlloc(int64(size))
		p = Ptr(q)
		return err
	})
	if err == nil {
		return p, nil
	}
	if free, total, e := d.MemInfo(); e == nil {
		return 0, fmt.Errorf("allocating %d bytes of device memory (%d of %d free): %w", size, free, total, err)
	}
	return 0, fmt.Errorf("allocating %d bytes of device memory: %w", size, err)
}

func (d *device) Free(p Ptr) error {
	return d.do("cuMemFree", func() error { return cu.MemFree(cu.DevicePtr(p)) })
}

func (d *device) AllocHost(size int) ([]byte, error) {
	if size <= 0 {
		return nil, fmt.Errorf("allocating %d bytes of page-locked memory: want 1 or more", size)
	}
	return nil, unsupported("cuMemHostAlloc")
}

func (d *device) FreeHost([]byte) error { return unsupported("cuMemHostAlloc") }

func (d *device) EncodeTensorMap(t TensorMapSpec) (TensorMap, error) {
	if err := t.check(); err != nil {
		return TensorMap{}, err
	}
	return TensorMap{}, unsupported("cuTensorMapEncodeTiled")
}

type stream struct {
	d *device
	s cu.Stream
}

func (d *device) NewStream() (Stream, error) {
	s := &stream{d: d}
	err := d.do("cuStreamCreate", func() (err error) { s.s, err = cu.MakeStream(cu.StreamFlags(1)); return err })
	if err != nil {
		return nil, err
	}
	return s, nil
}

// CopyIn waits, as CopyOut does: cu has no page-locked memory.
func (s *stream) CopyIn(dst Ptr, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	err := s.d.do("cuMemcpyHtoDAsync", func() error {
		return cu.MemcpyHtoDAsync(cu.DevicePtr(dst), unsafe.Pointer(&src[0]), int64(len(src)), s.s)
	})
	if err != nil {
		return err
	}
	return s.Synchronize()
}

func (s *stream) CopyOut(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	err := s.d.do("cuMemcpyDtoHAsync", func() error {
		return cu.MemcpyDtoHAsync(unsafe.Pointer(&dst[0]), cu.DevicePtr(src), int64(len(dst)), s.s)
	})
	if err != nil {
		return err
	}
	return s.Synchronize()
}

func (s *stream) Copy(dst, src Ptr, size uint64) error {
	if size == 0 {
		return nil
	}
	return s.d.do("cuMemcpyDtoDAsync", func() error {
		return cu.MemcpyDtoDAsync(cu.DevicePtr(dst), cu.DevicePtr(src), int64(size), s.s)
	})
}

func (s *stream) Fill(dst Ptr, value byte, size uint64) error {
	if size == 0 {
		return nil
	}
	return s.d.do("cuMemsetD8Async", func() error { return cu.MemsetD8Async(cu.DevicePtr(dst), value, int64(size), s.s) })
}

// Launch: cu copies 8 bytes of every argument, so larger ones cannot be passed; behind
// smaller ones Args has bytes to read.
func (s *stream) Launch(f Function, grid, block Dim, shared uint32, args *Args) error {
	k, ok := f.(*function)
	if !ok || k.d != s.d {
		return fmt.Errorf("launching %s: it was not loaded through the device of the stream", f.Name())
	}
	if err := args.check(k.name, nil); err != nil {
		return err
	}
	for i, n := range args.size {
		if n > 8 {
			return fmt.Errorf("launching %s: argument %d has %d bytes: %w", k.name, i, n, unsupported("arguments of more than 8 bytes"))
		}
	}
	g, b := grid.ones(), block.ones()
	err := s.d.do("cuLaunchKernel", func() error {
		return k.f.Launch(int(g.X), int(g.Y), int(g.Z), int(b.X), int(b.Y), int(b.Z), int(shared), s.s, args.ptr[:len(args.size)])
	})
	if err != nil {
		return fmt.Errorf("launching %s: grid %v, block %v, %d bytes of shared memory: %w", k.name, g, b, shared, err)
	}
	return nil
}

func (s *stream) Record(e Event) error {
	ev, ok := e.(*event)
	if !ok || ev.d != s.d {
		return fmt.Errorf("recording an event in a stream of device %d: it belongs to another device", s.d.info.Index)
	}
	return s.d.do("cuEventRecord", func() error { return ev.e.Record(s.s) })
}

func (s *stream) Wait(e Event) error {
	ev, ok := e.(*event)
	if !ok || ev.d.lib != s.d.lib {
		return fmt.Errorf("waiting for an event in a stream of device %d: it belongs to another library", s.d.info.Index)
	}
	return s.d.do("cuStreamWaitEvent", func() error { return s.s.Wait(ev.e, 0) })
}

func (s *stream) Synchronize() error { return s.d.do("cuStreamSynchronize", s.s.Synchronize) }
func (s *stream) Close() error       { return s.d.do("cuStreamDestroy", s.s.Destroy) }

type event struct {
	d *device
	e cu.Event
}

func (d *device) NewEvent() (Event, error) {
	e := &event{d: d}
	if err := d.do("cuEventCreate", func() (err error) { e.e, err = cu.MakeEvent(0); return err }); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *event) Done() (bool, error) {
	err := e.d.do("cuEventQuery", e.e.Query)
	if hasCode(err, codeNotReady) {
		return false, nil
	}
	return err == nil, err
}

func (e *event) Synchronize() error { return e.d.do("cuEventSynchronize", e.e.Synchronize) }

func (e *event) Since(start Event) (d time.Duration, err error) {
	s, ok := start.(*event)
	if !ok || s.d != e.d {
		return 0, fmt.Errorf("time between events: they belong to different devices")
	}
	err = e.d.do("cuEventElapsedTime", func() error {
		ms, err := s.e.Elapsed(e.e)
		d = time.Duration(ms * 1e6)
		return err
	})
	return d, err
}

func (e *event) Close() error {
	return e.d.do("cuEventDestroy", func() error { return cu.DestroyEvent(&e.e) })
}

type module struct {
	d *device
	m cu.Module
}

func (d *device) LoadModule(image []byte) (Module, error) {
	m := &module{d: d}
	if err := d.do("cuModuleLoadData", func() (err error) { m.m, err = cu.LoadData(string(image)); return err }); err != nil {
		return nil, fmt.Errorf("loading a module of %d bytes for compute capability %d.%d: %w", len(image), d.info.Major, d.info.Minor, err)
	}
	return m, nil
}

func (m *module) Close() error { return m.d.do("cuModuleUnload", m.m.Unload) }

type function struct {
	d    *device
	name string
	f    cu.Function
}

func (m *module) Function(name string) (Function, error) {
	f := &function{d: m.d, name: name}
	if err := m.d.do("cuModuleGetFunction", func() (err error) { f.f, err = m.m.Function(name); return err }); err != nil {
		return nil, fmt.Errorf("kernel %q: %w", name, err)
	}
	return f, nil
}

func (f *function) Name() string { return f.name }

func (f *function) Attribute(a Attribute) (v int, err error) {
	err = f.d.do("cuFuncGetAttribute", func() (err error) { v, err = f.f.Attribute(cu.FunctionAttribute(a)); return err })
	if err != nil {
		return 0, fmt.Errorf("kernel %q, attribute %d: %w", f.name, a, err)
	}
	return v, nil
}

func (f *function) SetAttribute(a Attribute, value int) error {
	return fmt.Errorf("kernel %q, setting attribute %d to %d: %w", f.name, a, value, unsupported("cuFuncSetAttribute"))
}
