//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver

import (
	"fmt"
	"unsafe"
)

type module struct {
	d *device
	h uintptr
}

func (d *device) LoadModule(image []byte) (Module, error) {
	// PTX text ends with a NUL; what comes behind a cubin is not read.
	z := make([]byte, len(image)+1)
	copy(z, image)
	m := &module{d: d}
	if err := d.call(cuModuleLoadData, uintptr(unsafe.Pointer(&m.h)), uintptr(unsafe.Pointer(&z[0]))); err != nil {
		return nil, fmt.Errorf("loading a module of %d bytes for compute capability %d.%d: %w", len(image), d.info.Major, d.info.Minor, err)
	}
	return m, nil
}

func (m *module) Close() error { return m.d.call(cuModuleUnload, m.h) }

type function struct {
	d     *device
	name  string
	h     uintptr
	sizes []int // bytes of the parameters; nil where the driver does not tell
}

func (m *module) Function(name string) (Function, error) {
	z := append([]byte(name), 0)
	f := &function{d: m.d, name: name}
	if err := m.d.call(cuModuleGetFunction, uintptr(unsafe.Pointer(&f.h)), m.h, uintptr(unsafe.Pointer(&z[0]))); err != nil {
		return nil, fmt.Errorf("kernel %q: %w", name, err)
	}
	if m.d.lib.sym[cuFuncGetParamInfo] == 0 {
		return f, nil
	}
	f.sizes = []int{}
	for i := 0; ; i++ {
		var offset, size uint64
		err := m.d.call(cuFuncGetParamInfo, f.h, uintptr(i), uintptr(unsafe.Pointer(&offset)), uintptr(unsafe.Pointer(&size)))
		if hasCode(err, codeInvalidValue) { // behind the last one
			return f, nil
		}
		if err != nil {
			return nil, fmt.Errorf("kernel %q: %w", name, err)
		}
		f.sizes = append(f.sizes, int(size))
	}
}

func (f *function) Name() string { return f.name }

func (f *function) Attribute(a Attribute) (int, error) {
	var v int32
	if err := f.d.call(cuFuncGetAttribute, uintptr(unsafe.Pointer(&v)), uintptr(a), f.h); err != nil {
		return 0, fmt.Errorf("kernel %q, attribute %d: %w", f.name, a, err)
	}
	return int(v), nil
}

func (f *function) SetAttribute(a Attribute, value int) error {
	if err := f.d.call(cuFuncSetAttribute, f.h, uintptr(a), uintptr(value)); err != nil {
		return fmt.Errorf("kernel %q, setting attribute %d to %d: %w", f.name, a, value, err)
	}
	return nil
}
