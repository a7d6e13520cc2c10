package convert

import (
	"runtime"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/nf4"
)

// DefaultMemory caps the buffers of a run that was given no cap.
const DefaultMemory = 128 << 20

// DefaultHostMemory caps the buffers in host memory of a run on devices that was given no cap.
const DefaultHostMemory = 512 << 20

// DefaultDeviceMemory caps the buffers in the memory of a device that was given no cap: a
// few megabytes per worker saturate the link, more gains nothing.
const DefaultDeviceMemory = 1 << 30

// Chunks are powers of two: multiples of every block size, and subtrees of the
// digests. The largest keeps a worker's buffers within the L2 cache of one core or
// two while a read is still long enough for a disk, and for the link to a device.
//
// Chunks for a device may be larger, for what is done once for each (a launch, two copies
// and a wait) costs as much as hashing a quarter of a megabyte.
const (
	minChunkElems       = 1 << 15
	maxChunkElems       = 1 << 19
	maxDeviceChunkElems = 1 << 21
)

// waitingPerDevice is how many workers there are for each device beyond one per CPU: those
// that wait for it.
const waitingPerDevice = 2

// Schedule is how a plan is run. Any schedule gives the same output.
type Schedule struct {
	Workers    int           `json:"workers"`
	ChunkElems int64         `json:"chunk_elems"` // elements a worker takes at a time
	JobMemory  int64         `json:"job_memory"`  // bytes for the absmax of all jobs in flight
	Memory     int64         `json:"memory"`      // planned peak of all buffers, bytes
	Least      int64         `json:"least"`       // the smallest --memory that this plan accepts
	Devices    []DeviceShare `json:"devices,omitempty"`
}

// DeviceShare is what one accelerator does of a run. Workers take chunks as they come, so
// a faster device does more.
type DeviceShare struct {
	Name    string `json:"name"`
	Workers int    `json:"workers"`
	Memory  int64  `json:"memory"` // planned peak of the buffers in its memory, bytes
}

// places lists the device of every worker, neighbours on different devices.
func (s *Schedule) places() []int {
	var out []int
	for k := 0; len(out) < s.Workers; k++ {
		if len(s.Devices) == 0 {
			out = append(out, 0)
		}
		for d := range s.Devices {
			if k < s.Devices[d].Workers {
				out = append(out, d)
			}
		}
	}
	return out
}

// makeSchedule fits workers and chunks under the caps.
func makeSchedule(jobs []Job, res Resources) (Schedule, error) {
	var perElem, perDeviceElem, largest int64 = 1, 1, 0
	for i := range jobs {
		w := compile(&jobs[i])
		perElem = max(perElem, w.scratchPerElem())
		perDeviceElem = max(perDeviceElem, w.devicePerElem())
		largest = max(largest, w.jobBytes())
	}
	least := perElem*minChunkElems*max(1, int64(len(res.Devices))) + largest
	limit, chunk := res.Memory, int64(maxChunkElems)
	if limit == 0 {
		limit = max(DefaultMemory, least+largest)
	}
	if len(res.Devices) > 0 {
		chunk = maxDeviceChunkElems
		if res.Memory == 0 {
			limit = max(DefaultHostMemory, limit)
		}
	}
	if limit < least {
		return Schedule{}, fault.WithHint(
			fault.Usagef("--memory: %s is too little for this checkpoint: it needs at least %s (%d bytes)", units.IBytes(limit), units.IBytes(least), least),
			"%s for the smallest chunk of %s and %s for the absmax of the largest tensor while it is converted",
			units.IBytes(least-largest), ownerOfBuffers(len(res.Devices)), units.IBytes(largest))
	}
	for _, d := range res.Devices {
		if need := perDeviceElem * minChunkElems; d.Memory < need {
			return Schedule{}, fault.WithHint(
				fault.Usagef("--gpu-memory: %s on %s is too little for this checkpoint: it needs at least %s", units.IBytes(d.Memory), d.Name, units.IBytes(need)),
				"--device cpu writes the same bytes")
		}
	}
	workers := res.Threads
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
		workers += waitingPerDevice * len(res.Devices)
	}
	workers = max(workers, len(res.Devices))
	for ; chunk > minChunkElems && (int64(workers)*perElem*chunk+largest > limit || !fits(res.Devices, workers, perDeviceElem*chunk)); chunk /= 2 {
	}
	workers = int(max(1, min(int64(workers), (limit-largest)/(perElem*chunk))))
	s := Schedule{Workers: workers, ChunkElems: chunk, Least: least}
	if len(res.Devices) > 0 {
		s.Workers = 0
		for i, d := range res.Devices {
			n := min(share(workers, len(res.Devices), i), int(d.Memory/(perDeviceElem*chunk)))
			s.Devices = append(s.Devices, DeviceShare{Name: d.Name, Workers: n, Memory: int64(n) * perDeviceElem * chunk})
			s.Workers += n
		}
	}
	// Jobs in flight beyond the largest only help when every worker has one; more is waste.
	s.JobMemory = min(limit-int64(s.Workers)*perElem*chunk, largest*int64(s.Workers+1))
	s.Memory = int64(s.Workers)*perElem*chunk + s.JobMemory
	return s, nil
}

// ownerOfBuffers says whose buffers the least memory holds.
func ownerOfBuffers(devices int) string {
	if devices > 1 {
		return "one worker for each device"
	}
	return "one worker"
}

// share is how many of n workers the i-th of d devices gets.
func share(n, d, i int) int { return (n + d - 1 - i) / d }

// fits tells whether every device can hold its share of the workers.
func fits(devices []DeviceBudget, workers int, perWorker int64) bool {
	for i, d := range devices {
		if int64(share(workers, len(devices), i))*perWorker > d.Memory {
			return false
		}
	}
	return true
}

// scratchPerElem is what a worker's buffers hold per element of a chunk.
func (w *work) scratchPerElem() int64 {
	n := int64(w.read.Size()) + w.mergeScratch()
	if w.copyBytes {
		return 1
	}
	if w.decode {
		n += 12 // the float32 values and as much again within the decoder
	}
	if w.transpose && w.merge == nil {
		n += int64(w.read.Size())
	}
	if w.cast {
		n += int64(w.to.Size())
	}
	if w.quantize {
		n++ // packed nibbles, rounded up, and on devices the scales of a chunk
	}
	return n
}

// devicePerElem is what a worker's buffers on an accelerator hold per element of a chunk.
func (w *work) devicePerElem() int64 {
	if w.copyBytes {
		return 0
	}
	n := int64(w.read.Size())
	if w.cast {
		n += int64(w.to.Size())
	}
	if w.quantize {
		n++ // packed nibbles and scales, rounded up
	}
	return n
}

// jobBytes is what the job holds while it is in flight.
func (w *work) jobBytes() int64 {
	if !w.quantize {
		return w.mergeBytes()
	}
	nb := nf4.NumBlocks(w.elems, w.blockSize)
	n := 4*nb + sampleBytes(nb) + w.mergeBytes()
	if w.doubleQuant {
		n += nb + 4*doublequant.Groups(nb)
	}
	return n
}
