//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// places are tried in turn: the loader's path, then where WSL and NixOS keep the
// driver outside of it.
var places = []string{"libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1"}

// library is a loaded driver.
type library struct {
	path    string
	version Version
	sym     [symbols]uintptr
	handles []int32 // CUdevice by index
	infos   []Info
	pinned  pinned

	mu    sync.Mutex
	opens map[int]int // primary contexts retained, by index
}

func (l *library) Binding() string  { return "purego" }
func (l *library) Path() string     { return l.path }
func (l *library) Version() Version { return l.version }
func (l *library) Devices() []Info  { return append([]Info(nil), l.infos...) }

func open() (Library, error) {
	// dlerror answers for the calling thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l := &library{opens: map[int]int{}}
	handle, err := l.load()
	if err != nil {
		return nil, err
	}
	for s, name := range names {
		a, err := purego.Dlsym(handle, name)
		if err == nil {
			l.sym[s] = a
			continue
		}
		// An old driver says so by its version, not by the first symbol it lacks.
		if symbol(s) >= firstOptional || symbol(s) > cuDriverGetVersion && l.tooOld() != nil {
			continue
		}
		return nil, fmt.Errorf("%w: %s lacks the symbol %s", ErrNoDriver, l.path, name)
	}
	if err := l.tooOld(); err != nil {
		return nil, err
	}
	if err := l.init(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *library) load() (handle uintptr, err error) {
	try := places
	variable, set := os.LookupEnv(LibraryVariable)
	if set = set && variable != ""; set {
		try = []string{variable}
	}
	// Mostly all are missing for the same reason, which is said once.
	var text, last string
	for _, l.path = range try {
		handle, err = purego.Dlopen(l.path, purego.RTLD_NOW|purego.RTLD_LOCAL)
		if err == nil {
			return handle, nil
		}
		reason := ": " + strings.TrimPrefix(err.Error(), l.path+": ")
		switch {
		case text == "":
			text = l.path + reason
		case reason == last:
			text = strings.TrimSuffix(text, reason) + ", " + l.path + reason
		default:
			text += "; " + l.path + reason
		}
		last = reason
	}
	if set {
		text = LibraryVariable + " is set: " + text
	}
	return 0, fmt.Errorf("%w: %s", ErrNoDriver, text)
}

func (l *library) tooOld() error {
	var v int32
	if err := l.call(cuDriverGetVersion, uintptr(unsafe.Pointer(&v))); err != nil {
		return err
	}
	if l.version = Version(v); l.version < MinVersion {
		return tooOld(l.path, l.version)
	}
	return nil
}

func (l *library) init() error {
	r, _, _ := purego.SyscallN(l.sym[cuInit], 0)
	switch int32(r) {
	case 0:
	case codeNoDevice:
		return noDevice(l.path)
	case codeStub:
		return fmt.Errorf("%w: %s is the stub of the CUDA toolkit to link with, not a driver", ErrNoDriver, l.path)
	default:
		return l.failed(cuInit, -1, int32(r))
	}
	var n int32
	if err := l.call(cuDeviceGetCount, uintptr(unsafe.Pointer(&n))); err != nil {
		return err
	}
	if n <= 0 {
		return noDevice(l.path)
	}
	for i := range n {
		if err := l.describe(i); err != nil {
			return err
		}
	}
	return nil
}

func (l *library) describe(index int32) error {
	var h int32
	if err := l.call(cuDeviceGet, uintptr(unsafe.Pointer(&h)), uintptr(index)); err != nil {
		return err
	}
	info := Info{Index: int(index)}
	name, bus, total := make([]byte, 256), make([]byte, 32), new(uint64)
	err := l.call(cuDeviceGetName, uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)-1), uintptr(h))
	if err == nil {
		err = l.call(cuDeviceGetPCIBusID, uintptr(unsafe.Pointer(&bus[0])), uintptr(len(bus)-1), uintptr(h))
	}
	if err == nil {
		err = l.call(cuDeviceGetUUID, uintptr(unsafe.Pointer(&info.UUID)), uintptr(h))
	}
	if err == nil {
		err = l.call(cuDeviceTotalMem, uintptr(unsafe.Pointer(total)), uintptr(h))
	}
	if err != nil {
		return err
	}
	info.Name, info.PCIBusID, info.TotalMemory = text(name), text(bus), *total
	for _, a := range []struct {
		to   *int
		attr uintptr
	}{
		{&info.Major, attrMajor}, {&info.Minor, attrMinor}, {&info.SMs, attrSMs}, {&info.ClockKHz, attrClock},
		{&info.MemoryKHz, attrMemoryClock}, {&info.MemoryBits, attrMemoryBits}, {&info.L2Bytes, attrL2}, {&info.SharedOptIn, attrSharedOptIn},
	} {
		var v int32
		if err := l.call(cuDeviceGetAttribute, uintptr(unsafe.Pointer(&v)), a.attr, uintptr(h)); err != nil {
			return err
		}
		*a.to = int(v)
	}
	l.handles, l.infos = append(l.handles, h), append(l.infos, info)
	return nil
}

// text is what stands before the first NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.TrimSpace(string(b))
}

// call is a call that needs no context.
//
//go:uintptrescapes
func (l *library) call(s symbol, args ...uintptr) error {
	if r, _, _ := purego.SyscallN(l.sym[s], args...); int32(r) != 0 {
		return l.failed(s, -1, int32(r))
	}
	return nil
}

// failed makes an Error of a CUresult that is not 0.
func (l *library) failed(s symbol, device int, code int32) error {
	return &Error{
		Code: int(code), Call: names[s], Device: device,
		Name: l.errorText(cuGetErrorName, code, "unknown code"), Text: l.errorText(cuGetErrorString, code, "failed"),
	}
}

func (l *library) errorText(s symbol, code int32, otherwise string) string {
	var p *byte
	if l.sym[s] == 0 {
		return otherwise
	}
	if r, _, _ := purego.SyscallN(l.sym[s], uintptr(code), uintptr(unsafe.Pointer(&p))); int32(r) != 0 || p == nil {
		return otherwise
	}
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return strings.Clone(unsafe.String(p, n))
}
