package machine

import (
	"runtime"
	"strings"
	"testing"
)

// The name is one line for a screen. Only amd64 systems are sure to have one.
func TestCPUModel(t *testing.T) {
	got := CPUModel()
	if strings.ContainsAny(got, "\n\t\x00") || got != strings.TrimSpace(got) {
		t.Errorf("%q is no line for a screen", got)
	}
	if got == "" && runtime.GOARCH == "amd64" && runtime.GOOS == "linux" {
		t.Error("no name on amd64")
	}
}
