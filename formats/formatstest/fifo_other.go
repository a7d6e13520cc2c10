//go:build !unix

package formatstest

import "path/filepath"

// fifo takes the case back: there are no named pipes in this file system.
func (b *builder) fifo(dir, _ string) {
	b.tb.Logf("leaving out %q: no named pipes here", filepath.Base(dir))
	b.cases = b.cases[:len(b.cases)-1]
}
