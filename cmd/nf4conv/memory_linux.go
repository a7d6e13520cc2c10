package main

import (
	"bytes"
	"os"
	"strconv"
)

// peakRSS is the most memory the process held resident, in bytes; 0 where unknown. It is
// the kernel's VmHWM: the figure of getrusage starts at the size of the process that
// started this one, which may be a large one.
func peakRSS() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kib, _ := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte(" kB"))), 10, 64)
			return kib << 10
		}
	}
	return 0
}
