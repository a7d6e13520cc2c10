//go:build !purego

package kernels

//go:generate go -C _asm run ./cpuid -out ../cpuid_amd64.s -stubs ../stubs_amd64.go -pkg kernels

func detectL2() (size, sharers int) { return secondLevel(cpuid) }
