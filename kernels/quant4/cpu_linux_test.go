package quant4_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// cpuSeconds is the time that this thread has computed. On a machine with other work it
// says more about a kernel than the time on the wall.
func cpuSeconds(b *testing.B) float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return float64(t.Sec) + float64(t.Nsec)/1e9
}
