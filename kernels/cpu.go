package kernels

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/cpu"
)

// Features says which instruction sets this process may use: what the processor has,
// less what NF4CONV_DISABLE (a comma-separated list of tiers) takes away. It is read
// once, when the program starts.
var Features = detect(os.Getenv("NF4CONV_DISABLE"))

// FeatureSet lists the tiers of assembly.
type FeatureSet struct {
	AVX2   bool // with FMA and F16C
	AVX512 bool // F, BW, VL and DQ
}

func detect(disabled string) FeatureSet {
	off := strings.Split(disabled, ",")
	f := FeatureSet{
		AVX2:   cpu.X86.HasAVX2 && cpu.X86.HasFMA && !slices.Contains(off, "avx2"),
		AVX512: cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512DQ && !slices.Contains(off, "avx512"),
	}
	f.AVX512 = f.AVX512 && f.AVX2 // a masked tier takes those above it along
	return f
}

// Tiers names the implementations compiled into this program, best last. Generic Go is
// the definition of every result and always there.
func Tiers() []string { return []string{"generic"} }

// Tier is the best implementation that this process uses.
func Tier() string { t := Tiers(); return t[len(t)-1] }
