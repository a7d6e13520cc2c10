package term

import (
	"os"

	"golang.org/x/sys/windows"
)

// Width is the number of columns of the terminal that f is, or 0 when it is none.
func Width(f *os.File) int {
	var info windows.ConsoleScreenBufferInfo
	if windows.GetConsoleScreenBufferInfo(windows.Handle(f.Fd()), &info) != nil {
		return 0
	}
	return int(info.Window.Right-info.Window.Left) + 1
}
