//go:build unix

package term

import (
	"os"

	"golang.org/x/sys/unix"
)

// Width is the number of columns of the terminal that f is, or 0 when it is none.
func Width(f *os.File) int {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if w.Col == 0 {
		return 80
	}
	return int(w.Col)
}
