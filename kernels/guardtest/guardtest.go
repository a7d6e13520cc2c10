// Package guardtest makes memory for tests of kernels: slices that end, or begin, exactly
// where memory does, so that assembly which reads or writes one byte beyond crashes
// instead of getting away with it. Only a page that is not there shows a read.
package guardtest

import (
	"testing"
	"unsafe"
)

// Bytes returns n zero bytes with an inaccessible page right behind them or, if front is
// set, right before. Where there are none it skips the test.
func Bytes(t testing.TB, n int, front bool) []byte {
	t.Helper()
	return guarded(t, n, front)
}

// Floats is Bytes for n float32.
func Floats(t testing.TB, n int, front bool) []float32 {
	t.Helper()
	b := Bytes(t, 4*n, front)
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&b[0])), n)
}
