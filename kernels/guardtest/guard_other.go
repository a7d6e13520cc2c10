//go:build !unix

package guardtest

import "testing"

func guarded(t testing.TB, _ int, _ bool) []byte {
	t.Helper()
	t.Skip("NOT RUN: guard pages are implemented for Unix only")
	return nil
}
