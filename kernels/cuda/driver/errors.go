package driver

import (
	"errors"
	"fmt"
	"os"
)

// What Open can find wrong with the machine.
var (
	ErrNoDriver = errors.New("no CUDA driver")
	ErrTooOld   = errors.New("the CUDA driver is too old")
	ErrNoDevice = errors.New("no CUDA device")
)

// What the other calls can report, for errors.Is.
var (
	// ErrOutOfMemory: the device, or the host when it was asked for page-locked memory,
	// has not so much left. The context is unharmed.
	ErrOutOfMemory = errors.New("out of memory")
	// ErrDeviceLost: a kernel went wrong or the hardware failed. The context is beyond
	// use, every later call fails alike, and only a new process can use the device again.
	ErrDeviceLost = errors.New("the device is lost to this process")
	// ErrUnsupported: this implementation or this driver cannot do that.
	ErrUnsupported = errors.New("not supported")
	// ErrClosed: the device was closed before.
	ErrClosed = errors.New("the device is closed")
)

// Error is a call that the driver refused.
type Error struct {
	Code   int    // CUresult of cuda.h
	Name   string // its name, such as CUDA_ERROR_OUT_OF_MEMORY
	Text   string // the driver's description
	Call   string // the function called
	Device int    // index of the device; -1 where there is none
}

func (e *Error) Error() string {
	where := ""
	if e.Device >= 0 {
		where = fmt.Sprintf("device %d: ", e.Device)
	}
	return fmt.Sprintf("cuda: %s%s: %s (%s, %d)", where, e.Call, e.Text, e.Name, e.Code)
}

// Is reports whether target is the class of the code (ErrOutOfMemory, ErrDeviceLost,
// ErrUnsupported, ErrNoDevice) or an *Error with the same code.
func (e *Error) Is(target error) bool {
	if t, ok := errors.AsType[*Error](target); ok {
		return t.Code == e.Code
	}
	return target == classOf(e.Code)
}

const (
	codeInvalidValue = 1
	codeNoMemory     = 2
	codeStub         = 34
	codeNoDevice     = 100
	codeNotReady     = 600
)

// classOf groups the codes of cuda.h. Lost are those whose description says that the
// process must be ended and started again, the destroyed context, the driver in
// shutdown, uncorrectable errors of the hardware, and "unknown".
func classOf(code int) error {
	switch code {
	case codeNoMemory:
		return ErrOutOfMemory
	case codeNoDevice:
		return ErrNoDevice
	case 801: // CUDA_ERROR_NOT_SUPPORTED
		return ErrUnsupported
	case 4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999:
		return ErrDeviceLost
	}
	return nil
}

// noDevice is ErrNoDevice with what hides devices from CUDA.
func noDevice(path string) error {
	if v, set := os.LookupEnv("CUDA_VISIBLE_DEVICES"); set {
		return fmt.Errorf("%w: %s finds none; CUDA_VISIBLE_DEVICES is %q", ErrNoDevice, path, v)
	}
	return fmt.Errorf("%w: %s finds none", ErrNoDevice, path)
}

func tooOld(path string, found Version) error {
	return fmt.Errorf("%w: %s supports CUDA %s: want %s or later, which comes with driver r525 and later", ErrTooOld, path, found, MinVersion)
}

func hasCode(err error, code int) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == code
}
