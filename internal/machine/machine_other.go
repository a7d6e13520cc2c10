//go:build !linux && !darwin && !windows

package machine

// CPUModel is the processor's name as its maker gives it, or "" when the system does
// not tell.
func CPUModel() string { return "" }
