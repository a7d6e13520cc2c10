//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver

import (
	"fmt"
	"time"
	"unsafe"
)

type stream struct {
	d *device
	h uintptr
}

func (d *device) NewStream() (Stream, error) {
	s := &stream{d: d}
	if err := d.call(cuStreamCreate, uintptr(unsafe.Pointer(&s.h)), streamNonBlocking); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *stream) CopyIn(dst Ptr, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	err := s.d.call4(cuMemcpyHtoDAsync, uintptr(dst), uintptr(unsafe.Pointer(&src[0])), uintptr(len(src)), s.h)
	return s.finish(err, src)
}

func (s *stream) CopyOut(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	err := s.d.call4(cuMemcpyDtoHAsync, uintptr(unsafe.Pointer(&dst[0])), uintptr(src), uintptr(len(dst)), s.h)
	return s.finish(err, dst)
}

// finish waits for a copy with memory that the driver may page or the collector free.
func (s *stream) finish(err error, b []byte) error {
	if err != nil || s.d.lib.pinned.holds(b) {
		return err
	}
	return s.Synchronize()
}

func (s *stream) Copy(dst, src Ptr, size uint64) error {
	if size == 0 {
		return nil
	}
	return s.d.call4(cuMemcpyDtoDAsync, uintptr(dst), uintptr(src), uintptr(size), s.h)
}

func (s *stream) Fill(dst Ptr, value byte, size uint64) error {
	if size == 0 {
		return nil
	}
	return s.d.call4(cuMemsetD8Async, uintptr(dst), uintptr(value), uintptr(size), s.h)
}

func (s *stream) Launch(f Function, grid, block Dim, shared uint32, args *Args) error {
	k, ok := f.(*function)
	if !ok || k.d != s.d {
		return fmt.Errorf("launching %s: it was not loaded through the device of the stream", f.Name())
	}
	if err := args.check(k.name, k.sizes); err != nil {
		return err
	}
	grid, block = grid.ones(), block.ones()
	if err := s.d.call11(cuLaunchKernel, k.h, uintptr(grid.X), uintptr(grid.Y), uintptr(grid.Z), uintptr(block.X), uintptr(block.Y), uintptr(block.Z),
		uintptr(shared), s.h, uintptr(unsafe.Pointer(&args.ptr[0])), 0); err != nil {
		return fmt.Errorf("launching %s: grid %v, block %v, %d bytes of shared memory: %w", k.name, grid, block, shared, err)
	}
	return nil
}

func (s *stream) Record(e Event) error {
	ev, ok := e.(*event)
	if !ok || ev.d != s.d {
		return fmt.Errorf("recording an event in a stream of device %d: it belongs to another device", s.d.info.Index)
	}
	return s.d.call4(cuEventRecord, ev.h, s.h, 0, 0)
}

func (s *stream) Wait(e Event) error {
	ev, ok := e.(*event)
	if !ok || ev.d.lib != s.d.lib {
		return fmt.Errorf("waiting for an event in a stream of device %d: it belongs to another library", s.d.info.Index)
	}
	return s.d.call4(cuStreamWaitEvent, s.h, ev.h, 0, 0)
}

func (s *stream) Synchronize() error { return s.d.call4(cuStreamSynchronize, s.h, 0, 0, 0) }
func (s *stream) Close() error       { return s.d.call(cuStreamDestroy, s.h) }

type event struct {
	d *device
	h uintptr
}

func (d *device) NewEvent() (Event, error) {
	e := &event{d: d}
	if err := d.call(cuEventCreate, uintptr(unsafe.Pointer(&e.h)), 0); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *event) Done() (bool, error) {
	err := e.d.call4(cuEventQuery, e.h, 0, 0, 0)
	if hasCode(err, codeNotReady) {
		return false, nil
	}
	return err == nil, err
}

func (e *event) Synchronize() error { return e.d.call4(cuEventSynchronize, e.h, 0, 0, 0) }

func (e *event) Since(start Event) (time.Duration, error) {
	s, ok := start.(*event)
	if !ok || s.d != e.d {
		return 0, fmt.Errorf("time between events: they belong to different devices")
	}
	var ms float32
	if err := e.d.call(cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), s.h, e.h); err != nil {
		return 0, err
	}
	return time.Duration(float64(ms) * 1e6), nil
}

func (e *event) Close() error { return e.d.call(cuEventDestroy, e.h) }
