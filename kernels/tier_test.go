package kernels

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// A tier named in NF4CONV_TEST_REQUIRE that was not selected is a failure, so that a
// machine without it cannot pass for one on which it was tested. The names that are not
// of a processor's tier are checked where they belong.
func TestRequireTier(t *testing.T) {
	for _, tier := range strings.FieldsFunc(os.Getenv("NF4CONV_TEST_REQUIRE"), func(r rune) bool { return r == ',' }) {
		if tier == "emulator" || tier == "cuda" {
			continue // kernels/cuda
		}
		if !slices.Contains(Tiers(), tier) {
			t.Errorf("tier %q is required and not selected; selected: %v", tier, Tiers())
		}
	}
	t.Logf("tiers tested: %v", Tiers())
}

func TestDisable(t *testing.T) {
	if f := detect("avx2,avx512"); f.AVX2 || f.AVX512 {
		t.Errorf("disabled tiers are on: %+v", f)
	}
	if f := detect("avx2"); f.AVX512 {
		t.Error("AVX-512 is on although the tier below it is disabled")
	}
}
