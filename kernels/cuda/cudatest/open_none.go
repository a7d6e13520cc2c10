//go:build !linux || !(amd64 || arm64) || nocuda || gorgonia

package cudatest

import (
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// Fake is a loaded copy of the fake driver; this build cannot load it.
type Fake struct{ driver.Library }

// Open skips the test, or fails it where the tier "emulator" is required.
func Open(tb testing.TB, _ ...string) *Fake {
	tb.Helper()
	NotRun(tb, "emulator", "this build does not load the fake driver into the test")
	return nil
}

// Count is never reached, because Open does not return.
func (f *Fake) Count(string) int { panic("cudatest: not loaded") }

// Careless is never reached, because Open does not return.
func (f *Fake) Careless() {}
