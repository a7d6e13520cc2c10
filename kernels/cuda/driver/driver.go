package driver

import (
	"fmt"
	"time"
)

// MinVersion is the oldest driver API that is used: 12.0, which driver r525 brought.
const MinVersion Version = 12000

// LibraryVariable is the environment variable that names the driver library to
// load in place of libcuda.so.1.
const LibraryVariable = "NF4CONV_CUDA_LIBRARY"

// Open loads the CUDA driver and initializes it. The error is [ErrNoDriver],
// [ErrTooOld] or [ErrNoDevice] (with errors.Is) or an [*Error] of the driver. Every
// call loads anew; a loaded driver stays in the process.
func Open() (Library, error) { return open() }

// Version is the version of the driver API, 1000*major + 10*minor.
type Version int

// String is the version as NVIDIA writes it, such as "12.4".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v/1000, v%1000/10) }

// Library is a loaded driver that has at least one device.
type Library interface {
	// Binding names the implementation: "purego" or "gorgonia".
	Binding() string
	// Path is the name under which the driver library was loaded.
	Path() string
	// Version is the highest API version that the driver supports.
	Version() Version
	// Devices describes the devices in the order of the driver.
	Devices() []Info
	// OpenDevice retains the primary context of a device, given by its index.
	OpenDevice(index int) (Device, error)
}

// Info describes a device.
type Info struct {
	Index        int      // from 0, among the visible devices
	Name         string   // such as "NVIDIA H100 80GB HBM3"
	UUID         [16]byte // the same in every process and container
	Major, Minor int      // compute capability
	TotalMemory  uint64   // bytes
	SMs          int      // streaming multiprocessors
	PCIBusID     string   // domain:bus:device.function in hex, such as 0000:41:00.0
	ClockKHz     int      // peak clock of the SMs
	MemoryKHz    int      // peak clock of the memory
	MemoryBits   int      // width of the memory bus
	L2Bytes      int      // size of the L2 cache
	SharedOptIn  int      // bytes of shared memory that one block can have after Function.SetAttribute
}

// UUIDString is the UUID as nvidia-smi prints it.
func (i Info) UUIDString() string {
	u := i.UUID
	return fmt.Sprintf("GPU-%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// ComputeCapability is major*10 + minor, the number in "sm_90".
func (i Info) ComputeCapability() int { return i.Major*10 + i.Minor }

// PeakBandwidth is the bandwidth of the memory in bytes per second that clock and bus
// width give, at two transfers a clock. It is 0 where the driver does not say.
func (i Info) PeakBandwidth() float64 {
	return 2 * float64(i.MemoryKHz) * 1e3 * float64(i.MemoryBits) / 8
}

// Ptr is an address in device memory. 0 is no memory.
type Ptr uint64

// Device is a device with its primary context retained.
type Device interface {
	// Info is the entry of Library.Devices.
	Info() Info
	// MemInfo says how much memory is free, for any process, and how much there is.
	MemInfo() (free, total uint64, err error)
	// Alloc returns size > 0 bytes of device memory, aligned to 256, with any content.
	Alloc(size uint64) (Ptr, error)
	// Free returns memory of Alloc. It waits for work that may use it.
	Free(p Ptr) error
	// AllocHost returns size > 0 bytes of page-locked host memory, usable with every
	// device. The slice must not be used after FreeHost or Close.
	AllocHost(size int) ([]byte, error)
	// FreeHost returns memory of AllocHost, given by any slice that starts where that one did.
	FreeHost(b []byte) error
	// NewStream creates a stream that does not wait for the default stream.
	NewStream() (Stream, error)
	// NewEvent creates an event that takes the time.
	NewEvent() (Event, error)
	// LoadModule loads a cubin, a fatbin or PTX text (which the driver compiles: slow).
	LoadModule(image []byte) (Module, error)
	// EncodeTensorMap makes the descriptor of a tensor for the tensor memory accelerator
	// of compute capability 9.0 and later.
	EncodeTensorMap(t TensorMapSpec) (TensorMap, error)
	// Synchronize waits for all work of the context.
	Synchronize() error
	// Close releases the primary context; no other call may be running. Whatever was made
	// from the device and not freed is gone after the last Close of the process, slices of
	// AllocHost too. Closing again does nothing.
	Close() error
}

// Stream is a queue of work of one device, done in order.
//
// Copies with memory of AllocHost, fills and launches return before they are done:
// the memory must stay as it is until Synchronize, or an event recorded after them,
// says so. Copies with other host memory are done when the call returns.
type Stream interface {
	// CopyIn copies len(src) bytes from the host.
	CopyIn(dst Ptr, src []byte) error
	// CopyOut copies len(dst) bytes to the host.
	CopyOut(dst []byte, src Ptr) error
	// Copy copies size bytes within the device.
	Copy(dst, src Ptr, size uint64) error
	// Fill sets size bytes to value.
	Fill(dst Ptr, value byte, size uint64) error
	// Launch runs f on grid x block threads with shared bytes of dynamic shared memory
	// for each block. The arguments are read before it returns, so args may be reset then.
	// Where the driver tells the sizes of the parameters (12.4 and later), others are refused.
	Launch(f Function, grid, block Dim, shared uint32, args *Args) error
	// Record makes e happen when all work up to here is done.
	Record(e Event) error
	// Wait lets later work of the stream start only when e, as last recorded, has happened.
	// e may belong to another stream or device.
	Wait(e Event) error
	// Synchronize waits until all work is done and reports what failed in it.
	Synchronize() error
	// Close destroys the stream. Work in it is still done.
	Close() error
}

// Event is a mark in a stream.
type Event interface {
	// Done reports whether the event, as last recorded, has happened. One that was never
	// recorded has.
	Done() (bool, error)
	// Synchronize waits until the event has happened.
	Synchronize() error
	// Since is the time of the device from start to this event; both must have happened.
	Since(start Event) (time.Duration, error)
	// Close destroys the event.
	Close() error
}

// Module is device code loaded into a context.
type Module interface {
	// Function finds a kernel by its name in the image.
	Function(name string) (Function, error)
	// Close unloads the module; its functions must not be used any more.
	Close() error
}

// Function is a kernel.
type Function interface {
	Name() string
	Attribute(a Attribute) (int, error)
	// SetAttribute sets one of those that can be set, such as MaxDynamicShared.
	SetAttribute(a Attribute, value int) error
}

// Attribute is a property of a kernel, CUfunction_attribute of cuda.h.
type Attribute int32

// The attributes.
const (
	MaxThreadsPerBlock   Attribute = 0
	StaticShared         Attribute = 1 // bytes
	ConstantBytes        Attribute = 2
	LocalBytes           Attribute = 3 // a thread; 0 when nothing is spilled
	Registers            Attribute = 4 // a thread
	MaxDynamicShared     Attribute = 8 // bytes a launch may ask for; can be set, 48 KiB at first
	PreferredSharedShare Attribute = 9 // share of L1 used as shared memory; can be set
)

// Dim is an extent in blocks or threads. A 0 counts as 1.
type Dim struct{ X, Y, Z uint32 }

// D1 is a one-dimensional extent.
func D1(x uint32) Dim { return Dim{X: x} }

func (d Dim) ones() Dim { return Dim{max(d.X, 1), max(d.Y, 1), max(d.Z, 1)} }
