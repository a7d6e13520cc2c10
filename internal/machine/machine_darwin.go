package machine

import "golang.org/x/sys/unix"

// CPUModel is the processor's name as its maker gives it, or "" when the system does
// not tell.
func CPUModel() string {
	name, err := unix.Sysctl("machdep.cpu.brand_string")
	if err != nil {
		return ""
	}
	return name
}
