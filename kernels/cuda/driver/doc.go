// Package driver speaks the CUDA driver API (libcuda) from Go: devices, memory,
// streams, events, modules and launches, and nothing of the CUDA runtime or the
// libraries above it.
//
// # Loading
//
// Nothing is loaded before [Open]. It opens libcuda.so.1 at run time, so that one
// program built with CGO_ENABLED=0 uses a GPU where there is one and starts
// everywhere. The environment variable NF4CONV_CUDA_LIBRARY names another file to
// load instead; then no other place is tried. Which devices there are is the
// driver's business (CUDA_VISIBLE_DEVICES, MIG).
//
// Symbols are asked for by their versioned names (cuMemAlloc_v2: the plain name is
// the 32-bit interface of CUDA 3) and called with the argument sizes of cuda.h:
// CUdevice and flags are 32 bits, CUdeviceptr is 64, sizes are size_t. The
// reference is the CUDA Driver API manual, version 12.0; a driver below that
// (before r525) is refused.
//
// # Contexts and threads
//
// [Library.OpenDevice] retains the primary context of the device, the one that other
// libraries of the process share. Every method may be called from any goroutine:
// it holds its operating system thread for the length of the call and makes the
// context current there first. Work of several goroutines in one stream is done in
// the order of their calls.
//
// # Memory
//
// Device memory is a [Ptr], a number of the device's address space. Host memory
// from [Device.AllocHost] is page-locked and mapped for all contexts (portable):
// only with it do copies run beside the host. Other host memory is accepted
// everywhere too, but such a copy is finished before the call returns, so that the
// garbage collector and the caller may do with the slice as they please.
//
// # Units
//
// Sizes are bytes, times time.Duration, clocks kHz as the driver gives them.
//
// # Implementations
//
// On Linux (amd64, arm64) the default build calls through github.com/ebitengine/purego.
// Build tag gorgonia selects gorgonia.org/cu (cgo, CUDA 11 or 12 headers), which
// cannot do all of it and then says [ErrUnsupported]; docs/deps.md has the list.
// On other systems and with the build tag nocuda, Open returns [ErrNoDriver] and no
// foreign code is linked. Package drivertest is the conformance suite for all of them,
// directory fake holds a driver in C for machines without a GPU.
package driver
