package term

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A pseudo terminal has the width it was given; one that nobody gave a size, as in
// containers, is taken for 80 columns.
func TestWidthOfTerminal(t *testing.T) {
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("NOT TESTED: no pseudo terminal here: %v", err)
	}
	defer f.Close()
	for cols, want := range map[uint16]int{0: 80, 1: 1, 80: 80, 132: 132, 65535: 65535} {
		if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: cols}); err != nil {
			t.Fatal(err)
		}
		if got := Width(f); got != want {
			t.Errorf("%d columns: width %d, want %d", cols, got, want)
		}
	}
}
