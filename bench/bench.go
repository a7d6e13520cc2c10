// Package bench measures what a machine can do and what the kernels make of it: memory,
// links, files, and 4-bit quantization on the processor and on GPUs, in one run, so that
// every rate stands beside the limit that bounds it.
//
// A rate is bytes read plus bytes written per second, the median of several runs of a
// fixed length. Sources are larger than caches. NF4, bfloat16 and blocks of 64 are the
// standard case.
package bench

import (
	"slices"
	"time"
)

// Schema names the JSON form of a [Report].
const Schema = "nf4conv.bench/1"

// Report is everything measured on one device.
type Report struct {
	Schema  string `json:"schema"`
	Device  string `json:"device"`
	Threads int    `json:"threads,omitempty"` // of the processor
	Rates   []Rate `json:"rates"`
}

// Rate is how fast something is.
type Rate struct {
	Name    string  `json:"name"`
	Bytes   int64   `json:"bytes"`       // read and written in a run
	Seconds float64 `json:"seconds"`     // median of a run
	PerSec  float64 `json:"bytes_per_s"` // Bytes/Seconds
	// Of is the rate that bounds this one; empty for a limit of the machine.
	Of    string  `json:"of,omitempty"`
	Share float64 `json:"share,omitempty"` // of that rate
}

// runs is how often a thing is measured; the median counts.
const runs = 7

func (r *Report) add(name string, bytes int64, times []time.Duration, of string) {
	slices.Sort(times)
	t := times[len(times)/2].Seconds()
	rate := Rate{Name: name, Bytes: bytes, Seconds: t, PerSec: float64(bytes) / t, Of: of}
	for _, limit := range r.Rates {
		if limit.Name == of {
			rate.Share = rate.PerSec / limit.PerSec
		}
	}
	r.Rates = append(r.Rates, rate)
}

// measure times f, after one run that does not count.
func measure(f func() error) ([]time.Duration, error) {
	if err := f(); err != nil {
		return nil, err
	}
	times := make([]time.Duration, runs)
	for i := range times {
		began := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		times[i] = time.Since(began)
	}
	return times, nil
}
