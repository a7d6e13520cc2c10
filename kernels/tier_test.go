package kernels

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// A tier named in NF4CONV_TEST_REQUIRE that was not selected is a failure, so that a
// machine without it cannot pass for one on which it was tested. One that is not named
// and not there is reported as not run. The names that are not of a processor's tier are
// checked where they belong.
func TestRequireTier(t *testing.T) {
	required := strings.FieldsFunc(os.Getenv("NF4CONV_TEST_REQUIRE"), func(r rune) bool { return r == ',' })
	required = slices.DeleteFunc(required, func(tier string) bool { return tier == "emulator" || tier == "cuda" }) // kernels/cuda
	for _, tier := range slices.Compact(slices.Sorted(slices.Values(append([]string{"avx2", "avx512"}, required...)))) {
		t.Run(tier, func(t *testing.T) {
			switch {
			case slices.Contains(Tiers(), tier):
			case slices.Contains(required, tier):
				t.Errorf("tier %q is required and not selected; selected: %v", tier, Tiers())
			default:
				t.Skipf("NOT RUN: tier %q is not selected here; selected: %v", tier, Tiers())
			}
		})
	}
}

// Use takes away what is above the tier and gives it back.
func TestUse(t *testing.T) {
	all := Tiers()
	for i, tier := range all {
		restore := Use(tier)
		if got := Tiers(); !slices.Equal(got, all[:i+1]) || Tier() != tier {
			t.Errorf("using %s: tiers %v, best %s", tier, got, Tier())
		}
		restore()
	}
	if got := Tiers(); !slices.Equal(got, all) {
		t.Errorf("after all: %v, want %v", got, all)
	}
	defer func() {
		if recover() == nil {
			t.Error("a tier that is not there is used")
		}
	}()
	Use("none")
}

func TestDisable(t *testing.T) {
	if f := detect("avx2,avx512"); f.AVX2 || f.AVX512 {
		t.Errorf("disabled tiers are on: %+v", f)
	}
	if f := detect("avx2"); f.AVX512 {
		t.Error("AVX-512 is on although the tier below it is disabled")
	}
}
