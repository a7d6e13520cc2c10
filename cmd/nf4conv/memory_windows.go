package main

import "runtime"

// peakRSS is the memory that the runtime took from the system, in bytes.
func peakRSS() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}
