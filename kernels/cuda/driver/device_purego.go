//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/ebitengine/purego"
)

// device is a device with its primary context.
type device struct {
	lib    *library
	info   Info
	handle int32
	ctx    []uintptr // the context, as the arguments of cuCtxSetCurrent
	closed atomic.Bool
}

func (l *library) OpenDevice(index int) (Device, error) {
	if index < 0 || index >= len(l.infos) {
		return nil, fmt.Errorf("%w: index %d: there are %d", ErrNoDevice, index, len(l.infos))
	}
	d := &device{lib: l, info: l.infos[index], handle: l.handles[index], ctx: make([]uintptr, 1)}
	// Threads that wait sleep: by default they spin, and a worker per core or two that waits
	// for its stream would take the cores from those that read and write. It is a wish: a
	// context that another library of the process made keeps its flags.
	if set := l.sym[cuDevicePrimaryCtxSetFlags]; set != 0 {
		const blockingSync = 4 // CU_CTX_SCHED_BLOCKING_SYNC
		_, _, _ = purego.SyscallN(set, uintptr(d.handle), blockingSync)
	}
	if r, _, _ := purego.SyscallN(l.sym[cuDevicePrimaryCtxRetain], uintptr(unsafe.Pointer(&d.ctx[0])), uintptr(d.handle)); int32(r) != 0 {
		return nil, l.failed(cuDevicePrimaryCtxRetain, index, int32(r))
	}
	l.mu.Lock()
	l.opens[index]++
	l.mu.Unlock()
	return d, nil
}

// call makes the context current on the thread and calls s. The variable argument
// lists of purego escape to the heap: work in streams goes through call4 and call11,
// which do not allocate.
//
//go:uintptrescapes
func (d *device) call(s symbol, args ...uintptr) error { return d.invoke(s, args) }

// frames are argument lists in use again and again.
var frames = sync.Pool{New: func() any { return new([11]uintptr) }}

// call4 is call with four arguments; a function that takes fewer does not see the rest.
//
//go:uintptrescapes
func (d *device) call4(s symbol, a0, a1, a2, a3 uintptr) error {
	f := frames.Get().(*[11]uintptr)
	f[0], f[1], f[2], f[3] = a0, a1, a2, a3
	err := d.invoke(s, f[:4])
	frames.Put(f)
	return err
}

//go:uintptrescapes
func (d *device) call11(s symbol, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 uintptr) error {
	f := frames.Get().(*[11]uintptr)
	*f = [11]uintptr{a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10}
	err := d.invoke(s, f[:])
	frames.Put(f)
	return err
}

func (d *device) invoke(s symbol, args []uintptr) error {
	if d.closed.Load() {
		return fmt.Errorf("%s on device %d: %w", names[s], d.info.Index, ErrClosed)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if r, _, _ := purego.SyscallN(d.lib.sym[cuCtxSetCurrent], d.ctx...); int32(r) != 0 {
		return d.lib.failed(cuCtxSetCurrent, d.info.Index, int32(r))
	}
	if r, _, _ := purego.SyscallN(d.lib.sym[s], args...); int32(r) != 0 {
		return d.lib.failed(s, d.info.Index, int32(r))
	}
	return nil
}

func (d *device) Info() Info { return d.info }

func (d *device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	l, index := d.lib, d.info.Index
	l.mu.Lock()
	l.opens[index]--
	if l.opens[index] == 0 {
		l.pinned.removeDevice(index) // the addresses may be those of other memory soon
	}
	l.mu.Unlock()
	if r, _, _ := purego.SyscallN(l.sym[cuDevicePrimaryCtxRelease], uintptr(d.handle)); int32(r) != 0 {
		return l.failed(cuDevicePrimaryCtxRelease, index, int32(r))
	}
	return nil
}

func (d *device) Synchronize() error { return d.call(cuCtxSynchronize) }

func (d *device) MemInfo() (free, total uint64, err error) {
	err = d.call(cuMemGetInfo, uintptr(unsafe.Pointer(&free)), uintptr(unsafe.Pointer(&total)))
	return free, total, err
}

func (d *device) Alloc(size uint64) (Ptr, error) {
	var p Ptr
	if err := d.call(cuMemAlloc, uintptr(unsafe.Pointer(&p)), uintptr(size)); err != nil {
		return 0, allocating(err, size, "device memory", d)
	}
	return p, nil
}

func (d *device) Free(p Ptr) error { return d.call(cuMemFree, uintptr(p)) }

func (d *device) AllocHost(size int) ([]byte, error) {
	if size <= 0 {
		return nil, fmt.Errorf("allocating %d bytes of page-locked memory: want 1 or more", size)
	}
	var p *byte
	if err := d.call(cuMemHostAlloc, uintptr(unsafe.Pointer(&p)), uintptr(size), hostAllocPortable); err != nil {
		return nil, allocating(err, uint64(size), "page-locked memory", nil)
	}
	b := unsafe.Slice(p, size)
	d.lib.pinned.add(b, d.info.Index)
	return b, nil
}

func (d *device) FreeHost(b []byte) error {
	if !d.lib.pinned.remove(b) {
		return fmt.Errorf("freeing %d bytes of page-locked memory: they do not start where an allocation does", len(b))
	}
	return d.call(cuMemFreeHost, address(b))
}

// allocating says how much was asked for and, of a device, how much is free.
func allocating(err error, size uint64, what string, d Device) error {
	if d != nil {
		if free, total, e := d.MemInfo(); e == nil {
			return fmt.Errorf("allocating %d bytes of %s (%d of %d free): %w", size, what, free, total, err)
		}
	}
	return fmt.Errorf("allocating %d bytes of %s: %w", size, what, err)
}

func (d *device) EncodeTensorMap(t TensorMapSpec) (TensorMap, error) {
	if err := t.check(); err != nil {
		return TensorMap{}, err
	}
	if d.lib.sym[cuTensorMapEncodeTiled] == 0 {
		return TensorMap{}, fmt.Errorf("%w: the driver (CUDA %s) has no cuTensorMapEncodeTiled", ErrUnsupported, d.lib.version)
	}
	// The driver wants the descriptor at a multiple of 64.
	raw := make([]byte, len(TensorMap{})+63)
	at := raw[-uintptr(unsafe.Pointer(&raw[0]))&63:]
	steps := t.steps()
	var strides, fill uintptr
	if len(t.Strides) > 0 {
		strides = uintptr(unsafe.Pointer(&t.Strides[0]))
	}
	if t.FillNaN {
		fill = 1
	}
	err := d.call(cuTensorMapEncodeTiled, uintptr(unsafe.Pointer(&at[0])), uintptr(t.Type), uintptr(len(t.Dims)), uintptr(t.Address),
		uintptr(unsafe.Pointer(&t.Dims[0])), strides, uintptr(unsafe.Pointer(&t.Box[0])), uintptr(unsafe.Pointer(&steps[0])),
		uintptr(t.Interleave), uintptr(t.Swizzle), uintptr(t.L2Promotion), fill)
	runtime.KeepAlive(t.Strides)
	if err != nil {
		return TensorMap{}, err
	}
	return TensorMap(at), nil
}
