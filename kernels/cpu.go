package kernels

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/cpu"
)

// Features says which instruction sets this process may use: what the processor has and
// this program has code for, less what NF4CONV_DISABLE (a comma-separated list of tiers)
// takes away. It is read once, when the program starts; only [Use] changes it.
var Features = detect(os.Getenv("NF4CONV_DISABLE"))

// FeatureSet lists the tiers of assembly.
type FeatureSet struct {
	AVX2   bool // with FMA and F16C
	AVX512 bool // F, BW, VL and DQ, and all of AVX2
}

func detect(disabled string) FeatureSet {
	off := strings.FieldsFunc(disabled, func(r rune) bool { return r == ',' || r == ' ' })
	x := &cpu.X86
	f := FeatureSet{
		AVX2:   assembly && x.HasAVX2 && x.HasFMA && x.HasF16C && !slices.Contains(off, "avx2"),
		AVX512: assembly && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ && !slices.Contains(off, "avx512"),
	}
	f.AVX512 = f.AVX512 && f.AVX2 // a masked tier takes those above it along
	return f
}

// Tiers names the implementations that this process can use, best last. Generic Go is
// the definition of every result and always there.
func Tiers() []string {
	t := []string{"generic"}
	if Features.AVX2 {
		t = append(t, "avx2")
	}
	if Features.AVX512 {
		t = append(t, "avx512")
	}
	return t
}

// Tier is the best implementation that this process uses.
func Tier() string { t := Tiers(); return t[len(t)-1] }

// Use makes tier, one of [Tiers], the best one until restore is called. It is there for
// tests and benchmarks, which go through all tiers; kernels must not run meanwhile.
func Use(tier string) (restore func()) {
	if !slices.Contains(Tiers(), tier) {
		panic(fmt.Sprintf("kernels: internal error: no tier %q among %v", tier, Tiers()))
	}
	old := Features
	Features.AVX512 = Features.AVX512 && tier == "avx512"
	Features.AVX2 = Features.AVX2 && tier != "generic"
	return func() { Features = old }
}
