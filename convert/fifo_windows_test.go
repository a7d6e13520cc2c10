package convert

import "testing"

func makeFIFO(t *testing.T, _ string) {
	t.Helper()
	t.Skip("NOT TESTED: file systems hold no named pipes here")
}
