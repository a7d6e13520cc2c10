// Package gpu is the engine of package convert that computes on NVIDIA GPUs.
//
// # Data flow
//
// A worker of the runner belongs to one device and has a stream of its own there:
//
//	file -> pinned memory -> device: finite check, cast, quantize -> pinned memory -> file
//	        (Scratch.Input)          (kernels/cuda)
//
// The worker waits for its own stream only, so that while one reads or writes, others
// copy and compute; several tensors are in flight, and any number of devices take chunks
// of the same tensors. The absmax of a tensor gathers in host memory, 1/32 of the bytes of
// a bfloat16 weight in blocks of 64. The worker that does its last chunk sends it to its
// device once more for the second level of double quantization.
//
// The bytes are those of the CPU engine: the kernels are equal to the Go definitions bit for
// bit, and which device does a chunk does not matter.
//
// # Memory
//
// On a device a worker holds a chunk as read, as cast and as packed
// (convert.DeviceBudget caps the sum over its workers), in pinned host memory the chunk
// as read and as packed. The context of the driver itself, some hundred megabytes on
// either side, comes on top.
//
// # Errors
//
// What a device refuses is a *convert.DeviceError of class fault.IO; what is done is
// kept and another engine can continue. A device that was lost stays lost to the process.
package gpu

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// Engine computes on some GPUs.
type Engine struct {
	devices []*device
}

// device is a GPU in use.
type device struct {
	dev       driver.Device
	module    driver.Module
	functions sync.Map   // name -> driver.Function
	dynamic   driver.Ptr // doublequant.Map
}

var _ convert.Engine = (*Engine)(nil)

// Open makes an engine of the devices of lib with these indices, all when there are none.
func Open(lib driver.Library, indices []int) (*Engine, error) {
	all := lib.Devices()
	if len(indices) == 0 {
		for i := range all {
			indices = append(indices, i)
		}
	}
	e := &Engine{}
	for _, i := range indices {
		if i < 0 || i >= len(all) {
			return nil, errors.Join(fault.IOf("cuda:%d: there is no such device; the driver shows %d", i, len(all)), e.Close())
		}
		d, err := open(lib, i)
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
		e.devices = append(e.devices, d)
	}
	return e, nil
}

func open(lib driver.Library, index int) (*device, error) {
	info := lib.Devices()[index]
	image, _, err := cuda.Image(info.Major, info.Minor)
	if err != nil {
		return nil, fault.IOf("cuda:%d (%s): %w", index, info.Name, err)
	}
	dev, err := lib.OpenDevice(index)
	if err != nil {
		return nil, deviceError(info, "opening it", err)
	}
	d := &device{dev: dev}
	if d.module, err = dev.LoadModule(image); err != nil {
		return nil, errors.Join(deviceError(info, "loading the kernels", err), d.close())
	}
	if err := d.copyMap(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// copyMap puts the dynamic map on the device.
func (d *device) copyMap() error {
	m := doublequant.Map()
	var err error
	if d.dynamic, err = d.dev.Alloc(uint64(4 * len(m))); err != nil {
		return d.fail("allocating memory", err)
	}
	s, err := d.dev.NewStream()
	if err != nil {
		return d.fail("making a stream", err)
	}
	err = errors.Join(s.CopyIn(d.dynamic, bytesOf(m[:])), s.Synchronize(), s.Close())
	if err != nil {
		return d.fail("copying to it", err)
	}
	return nil
}

// function is a kernel of the module.
func (d *device) function(name string) (driver.Function, error) {
	if f, ok := d.functions.Load(name); ok {
		return f.(driver.Function), nil
	}
	f, err := d.module.Function(name)
	if err != nil {
		return nil, d.fail("finding the kernel "+name, err)
	}
	d.functions.Store(name, f)
	return f, nil
}

func (d *device) close() error {
	var errs []error
	if d.dynamic != 0 {
		errs = append(errs, d.dev.Free(d.dynamic))
	}
	if d.module != nil {
		errs = append(errs, d.module.Close())
	}
	errs = append(errs, d.dev.Close())
	return errors.Join(unlost(errs)...)
}

// unlost leaves out what a lost device says when it is tidied up: it has lost its memory
// with it, and was reported by what found it so.
func unlost(errs []error) []error {
	return slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, driver.ErrDeviceLost) })
}

// fail says which device could not do what.
func (d *device) fail(doing string, err error) error { return deviceError(d.dev.Info(), doing, err) }

func deviceError(info driver.Info, doing string, err error) error {
	hint := "what is done is kept; the same command continues it, with --device cpu without this device"
	if errors.Is(err, driver.ErrOutOfMemory) {
		hint = "less --gpu-memory, or --device cpu; other programs may hold memory of the device (nvidia-smi shows them)"
	}
	return fault.WithHint(fault.IOf("%w", &convert.DeviceError{
		Device: fmt.Sprintf("cuda:%d (%s)", info.Index, info.Name), Err: fmt.Errorf("%s: %w", doing, err),
	}), "%s", hint)
}

// Name implements convert.Engine: "cuda:0,1 (2 x NVIDIA H100 80GB HBM3)".
func (e *Engine) Name() string {
	var indices, names []string
	for _, d := range e.devices {
		indices = append(indices, fmt.Sprint(d.dev.Info().Index))
		names = append(names, d.dev.Info().Name)
	}
	var groups []string
	for len(names) > 0 {
		name := names[0]
		n := len(names)
		names = slices.DeleteFunc(names, func(s string) bool { return s == name })
		if n -= len(names); n > 1 {
			name = fmt.Sprintf("%d x %s", n, name)
		}
		groups = append(groups, name)
	}
	return "cuda:" + strings.Join(indices, ",") + " (" + strings.Join(groups, ", ") + ")"
}

// Budgets are the devices for a schedule. caps has one cap on the buffers in a device's
// memory for all, or one per device; without one a device gives what it has free, and at
// most convert.DefaultDeviceMemory.
func (e *Engine) Budgets(caps []int64) ([]convert.DeviceBudget, error) {
	if len(caps) > 1 && len(caps) != len(e.devices) {
		return nil, fault.Usagef("--gpu-memory: %d sizes for %d devices: expected one for all or one for each", len(caps), len(e.devices))
	}
	var out []convert.DeviceBudget
	for i, d := range e.devices {
		free, _, err := d.dev.MemInfo()
		if err != nil {
			return nil, d.fail("asking for its memory", err)
		}
		b := convert.DeviceBudget{Name: fmt.Sprintf("cuda:%d", d.dev.Info().Index), Memory: min(convert.DefaultDeviceMemory, int64(free/10*9))}
		if len(caps) > 0 {
			b.Memory = caps[min(i, len(caps)-1)]
		}
		out = append(out, b)
	}
	return out, nil
}

// Close gives the devices back. No worker may use them any more.
func (e *Engine) Close() error {
	var errs []error
	for _, d := range e.devices {
		errs = append(errs, d.close())
	}
	e.devices = nil
	return errors.Join(errs...)
}
