//go:build gorgonia && cgo && linux && (amd64 || arm64) && !nocuda

package driver

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>

static int (*real_init)(unsigned int);

// gorgonia.org/cu calls cuInit when the program starts and ends the program when that
// fails, so that it cannot run without a GPU. This definition comes before that of the
// driver's library for the linker: it does nothing until start_driver finds the real one.
int cuInit(unsigned int flags)
{
	return real_init ? real_init(flags) : 0;
}

static int start_driver(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);
	if (library) real_init = (int (*)(unsigned int))dlsym(library, "cuInit");
	return real_init ? real_init(0) : -1;
}
*/
import "C"

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"unicode"

	"gorgonia.org/cu"
)

type library struct {
	version Version
	infos   []Info
	handles []cu.Device
}

func (l *library) Binding() string  { return "gorgonia" }
func (l *library) Path() string     { return "libcuda.so.1" }
func (l *library) Version() Version { return l.version }
func (l *library) Devices() []Info  { return append([]Info(nil), l.infos...) }

func open() (Library, error) {
	if v := os.Getenv(LibraryVariable); v != "" {
		return nil, fmt.Errorf("%w: %s is %q: a program built with the tag gorgonia is linked with libcuda.so.1", ErrUnsupported, LibraryVariable, v)
	}
	l := &library{version: Version(cu.Version())}
	if l.version < MinVersion {
		return nil, tooOld(l.Path(), l.version)
	}
	switch code := int(C.start_driver()); code {
	case 0:
	case -1:
		return nil, fmt.Errorf("%w: libcuda.so.1 has no cuInit", ErrNoDriver)
	case codeNoDevice:
		return nil, noDevice(l.Path())
	case codeStub:
		return nil, fmt.Errorf("%w: libcuda.so.1 is the stub of the CUDA toolkit to link with, not a driver", ErrNoDriver)
	default:
		return nil, &Error{Code: code, Name: "unknown code", Text: "failed", Call: "cuInit", Device: -1}
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, failed("cuDeviceGetCount", -1, err)
	}
	if n == 0 {
		return nil, noDevice(l.Path())
	}
	for i := range n {
		if err := l.describe(i); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *library) describe(index int) error {
	h, err := cu.GetDevice(index)
	if err != nil {
		return failed("cuDeviceGet", -1, err)
	}
	info := Info{Index: index}
	name, err := h.Name()
	if err != nil {
		return failed("cuDeviceGetName", -1, err)
	}
	uuid, err := h.UUID()
	if err != nil {
		return failed("cuDeviceGetUuid", -1, err)
	}
	total, err := h.TotalMem()
	if err != nil {
		return failed("cuDeviceTotalMem", -1, err)
	}
	info.Name, info.UUID, info.TotalMemory = strings.TrimSpace(name), uuid, uint64(total)
	var domain, bus, slot int
	for _, a := range []struct {
		to   *int
		attr cu.DeviceAttribute
	}{
		{&info.Major, 75}, {&info.Minor, 76}, {&info.SMs, 16}, {&info.ClockKHz, 13}, {&info.MemoryKHz, 36}, {&info.MemoryBits, 37},
		{&info.L2Bytes, 38}, {&info.SharedOptIn, 97}, {&domain, 50}, {&bus, 33}, {&slot, 34},
	} {
		if *a.to, err = h.Attribute(a.attr); err != nil {
			return failed("cuDeviceGetAttribute", -1, err)
		}
	}
	info.PCIBusID = fmt.Sprintf("%04X:%02X:%02X.0", domain, bus, slot) // cu has no cuDeviceGetPCIBusID
	l.infos, l.handles = append(l.infos, info), append(l.handles, h)
	return nil
}

// failed makes an Error of one of cu, whose type is an unexported integer and whose text
// is the name of the code in cuda.h without prefix and underscores: "OutOfMemory".
func failed(call string, device int, err error) error {
	code := reflect.ValueOf(err)
	if !code.CanInt() {
		return fmt.Errorf("%s on device %d: %w", call, device, err)
	}
	var words []string
	for _, r := range err.Error() {
		if unicode.IsUpper(r) || len(words) == 0 {
			words = append(words, "")
		}
		words[len(words)-1] += string(r)
	}
	return &Error{
		Code: int(code.Int()), Call: call, Device: device,
		Name: "CUDA_ERROR_" + strings.ToUpper(strings.Join(words, "_")), Text: strings.ToLower(strings.Join(words, " ")),
	}
}

func unsupported(what string) error {
	return fmt.Errorf("%w: gorgonia.org/cu has no %s", ErrUnsupported, what)
}
