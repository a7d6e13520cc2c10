//go:build unix

package formatstest

import (
	"path/filepath"
	"syscall"
)

// fifo makes a named pipe: whoever opens it for reading waits for a writer for ever.
func (b *builder) fifo(dir, name string) {
	b.tb.Helper()
	if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
		b.tb.Fatal(err)
	}
}
