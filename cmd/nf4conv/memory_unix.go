//go:build unix && !linux

package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// peakRSS is the most memory the process had, in bytes.
func peakRSS() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	if runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		return int64(u.Maxrss) //nolint:unconvert // the types differ between systems
	}
	return int64(u.Maxrss) * 1024 //nolint:unconvert // the types differ between systems
}
