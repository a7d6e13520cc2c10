package convert

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// Engine is a device that does the arithmetic of jobs.
type Engine interface {
	// Name says what it is, for people: "cpu (generic)".
	Name() string
	// NewScratch makes the buffers of one worker on the device with that index in
	// Schedule.Devices (0 on the CPU).
	NewScratch(device int, need ScratchSpec) (Scratch, error)
	// Begin opens a job that has arithmetic (cast or quantize). Chunks may then come in
	// any order and from any number of workers, each with its own Scratch.
	Begin(w JobSpec) (Transform, error)
}

// Scratch is a worker's private memory. What else it holds is the engine's own business.
type Scratch interface {
	// Input is the memory into which the worker reads its chunks, ScratchSpec.In bytes.
	Input() []byte
	// Close gives everything back. The worker uses nothing of it afterwards.
	Close() error
}

// ScratchSpec is what the largest chunk of any job takes.
type ScratchSpec struct {
	In        int64 // bytes as read
	Cast      int64 // bytes after a cast; 0 when no job casts
	Packed    int64 // bytes of 4-bit codes; 0 when no job quantizes
	Blocks    int64 // scales of a chunk
	JobBlocks int64 // scales of the largest job
}

// JobSpec is what an engine needs to know of a job.
type JobSpec struct {
	Elems       int64
	Read        kernels.Float // format of the chunks
	To          kernels.Float // format after the cast; equal to Read when there is none
	Check       bool          // refuse NaN and infinities, before and after the cast
	Quantize    bool
	Type        nf4.Type
	BlockSize   int
	DoubleQuant bool
}

// Transform is one job on an engine.
type Transform interface {
	// Chunk turns elements [first, first+n) of the job, which in holds, into the bytes
	// of PartWeight. first is a multiple of the block size. The result is valid until the
	// scratch is used again. A value that Check refuses is a *ValueError. An engine whose
	// device fails returns a *DeviceError.
	Chunk(s Scratch, first int64, in []byte) ([]byte, error)
	// Finish is called once, after all chunks, for a quantize job, with the scratch of the
	// worker that did the last of them: it hands the other parts to emit, as Scales.Emit does,
	// and reports.
	Finish(s Scratch, emit Emit) (Report, error)
}

// Emit takes a piece of a part at a byte offset; the pieces of a part come at rising offsets.
type Emit func(part Part, offset int64, p []byte) error

// Report is what a quantize job says of itself.
type Report struct {
	NestedOffset float32 // mean of absmax; 0 without double quantization
	RelError     float64 // ||w - dequantized|| / ||w|| over a sample of blocks
}

// DeviceError says that a device cannot go on. What is done is kept, and another engine
// can continue it.
type DeviceError struct {
	Device string // "cuda:0 (NVIDIA H100 80GB HBM3)"
	Err    error
}

func (e *DeviceError) Error() string { return e.Device + ": " + e.Err.Error() }
func (e *DeviceError) Unwrap() error { return e.Err }

// ValueError is a weight that cannot be converted.
type ValueError struct {
	Index int64  // flat, in the job's (transposed) order
	Found string // "NaN", "infinity", "70000, which float16 cannot hold"
}

func (e *ValueError) Error() string { return fmt.Sprintf("value at %d is %s", e.Index, e.Found) }
