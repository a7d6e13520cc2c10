package kernels

import "sync"

// usualL2 is the size of a second-level cache of which nothing is known.
const usualL2 = 512 << 10

// detected once it is wanted: CPUID is slow on a virtual machine.
var detected = sync.OnceValues(detectL2)

// L2 is how many bytes of a second-level cache each of so many threads may count on: the
// size that the processor reports, divided by how many of them it may be shared by. No
// result of a kernel may depend on it.
func L2(threads int) int {
	size, sharers := detected()
	return size / max(1, min(threads, sharers))
}

// secondLevel finds the second-level cache for data in the answers of CPUID: leaf 4 of
// Intel's processors or 0x8000001d of AMD's, which has the same layout and stands where
// leaf 4 says nothing ("Deterministic Cache Parameters" in Intel's SDM, volume 2, CPUID; "Cache
// Topology Information" in AMD's APM, volume 3, appendix E).
func secondLevel(cpuid func(leaf, sub uint32) (a, b, c, d uint32)) (size, sharers int) {
	leaves := []uint32{}
	if most, _, _, _ := cpuid(0, 0); most >= 4 {
		leaves = append(leaves, 4)
	}
	if most, _, _, _ := cpuid(0x80000000, 0); most >= 0x8000001d {
		leaves = append(leaves, 0x8000001d)
	}
	for _, leaf := range leaves {
		for sub := range uint32(16) {
			a, b, c, _ := cpuid(leaf, sub)
			kind, level := a&31, a>>5&7
			if kind == 0 {
				break
			}
			if level == 2 && kind != 2 { // 1 data, 2 instructions, 3 both
				ways, partitions, line, sets := int(b>>22)+1, int(b>>12&0x3ff)+1, int(b&0xfff)+1, int(c)+1
				return ways * partitions * line * sets, int(a>>14&0xfff) + 1
			}
		}
	}
	return usualL2, 1
}
