package convert

import (
	"runtime"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/nf4"
)

// DefaultMemory caps the buffers of a run that was given no cap.
const DefaultMemory = 128 << 20

// Chunks are powers of two: multiples of every block size, and subtrees of the
// digests. The largest keeps a worker's buffers within the L2 cache of one core or
// two while a read is still long enough for a disk.
const (
	minChunkElems = 1 << 15
	maxChunkElems = 1 << 19
)

// Schedule is how a plan is run. Any schedule gives the same output.
type Schedule struct {
	Workers    int   `json:"workers"`
	ChunkElems int64 `json:"chunk_elems"` // elements a worker takes at a time
	JobMemory  int64 `json:"job_memory"`  // bytes for the absmax of all jobs in flight
	Memory     int64 `json:"memory"`      // planned peak of all buffers, bytes
	Least      int64 `json:"least"`       // the smallest --memory that this plan accepts
}

// makeSchedule fits workers and chunks under the cap.
func makeSchedule(jobs []Job, res Resources) (Schedule, error) {
	var perElem, largest int64 = 1, 0
	for i := range jobs {
		w := compile(&jobs[i])
		perElem = max(perElem, w.scratchPerElem())
		largest = max(largest, w.jobBytes())
	}
	least := perElem*minChunkElems + largest
	limit := res.Memory
	if limit == 0 {
		limit = max(DefaultMemory, least+largest)
	}
	if limit < least {
		return Schedule{}, fault.WithHint(
			fault.Usagef("--memory of %d bytes is too small for this checkpoint: it needs at least %d", limit, least),
			"the absmax of the largest tensor (%d bytes) is kept while it is converted", largest)
	}
	workers := res.Threads
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	chunk := int64(maxChunkElems)
	for ; chunk > minChunkElems && int64(workers)*perElem*chunk+largest > limit; chunk /= 2 {
	}
	workers = int(max(1, min(int64(workers), (limit-largest)/(perElem*chunk))))
	// Jobs in flight beyond the largest only help when every worker has one; more is waste.
	jobMemory := min(limit-int64(workers)*perElem*chunk, largest*int64(workers+1))
	return Schedule{
		Workers: workers, ChunkElems: chunk, JobMemory: jobMemory, Least: least,
		Memory: int64(workers)*perElem*chunk + jobMemory,
	}, nil
}

// scratchPerElem is what a worker's buffers hold per element of a chunk.
func (w *work) scratchPerElem() int64 {
	n := int64(w.read.Size())
	if w.copyBytes {
		return 1
	}
	if w.decode {
		n += 12 // the float32 values and as much again within the decoder
	}
	if w.transpose {
		n += int64(w.read.Size())
	}
	if w.cast {
		n += int64(w.to.Size())
	}
	if w.quantize {
		n++ // packed nibbles, rounded up
	}
	return n
}

// jobBytes is what the job holds while it is in flight.
func (w *work) jobBytes() int64 {
	if !w.quantize {
		return 0
	}
	nb := nf4.NumBlocks(w.elems, w.blockSize)
	n := 4*nb + sampleBytes(nb)
	if w.doubleQuant {
		n += nb + 4*((nb+doublequant.BlockSize-1)/doublequant.BlockSize)
	}
	return n
}
