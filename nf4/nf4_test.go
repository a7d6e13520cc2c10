package nf4

import (
	"math"
	"testing"
)

// Bits of the published tables: bitsandbytes functional.py (get_4bit_type "nf4") and
// csrc/kernels.cu (dQuantizeNF4).
var (
	publishedLevels = [16]uint32{
		0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
		0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000,
	}
	publishedThresholds = [15]uint32{
		0xbf591cd8, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec, 0xbe0d38bc, 0xbd3a7871, 0x3d22faff,
		0x3df64862, 0x3e5067e0, 0x3e9582d4, 0x3ec753f9, 0x3f006d04, 0x3f248daf, 0x3f5c89da,
	}
	publishedFP4Thresholds = [15]uint32{
		0xbf555556, 0xbf155556, 0xbed55556, 0xbe955556, 0xbe555556, 0xbdb00000, 0xbb2aaaab, 0x00000000,
		0x3b2aaaab, 0x3db00000, 0x3e555556, 0x3e955556, 0x3ed55556, 0x3f155556, 0x3f555556,
	}
)

func TestNF4IsThePublishedTable(t *testing.T) {
	b := NF4.Codebook()
	for i, want := range publishedLevels {
		if got := math.Float32bits(b.Levels[i]); got != want {
			t.Errorf("level %d: derived %08x (%v), published %08x (%v)", i, got, b.Levels[i], want, math.Float32frombits(want))
		}
	}
	for i, want := range publishedThresholds {
		if got := math.Float32bits(b.Thresholds[i]); got != want {
			t.Errorf("threshold %d: derived %08x, published %08x", i, got, want)
		}
	}
}

func TestFP4Thresholds(t *testing.T) {
	b := FP4.Codebook()
	for i, want := range publishedFP4Thresholds {
		if got := math.Float32bits(b.Thresholds[i]); got != want {
			t.Errorf("threshold %d: %08x (%v), published %08x (%v)", i, got, b.Thresholds[i], want, math.Float32frombits(want))
		}
	}
	for r := 1; r < 16; r++ {
		if b.Levels[b.ByRank[r-1]] > b.Levels[b.ByRank[r]] {
			t.Errorf("rank %d: level %v above %v", r, b.Levels[b.ByRank[r-1]], b.Levels[b.ByRank[r]])
		}
	}
}

// Every level but zero stands for the same probability on its side (QLoRA, appendix E):
// the quantiles' probabilities are evenly spaced.
func TestLevelsAreEvenlySpacedQuantiles(t *testing.T) {
	b := NF4.Codebook()
	cdf := func(x float64) float64 { return 0.5 * math.Erfc(-x*normalQuantile(offset)/math.Sqrt2) }
	for _, side := range [][]float32{b.Levels[:8], b.Levels[7:]} {
		want := (cdf(float64(side[len(side)-1])) - cdf(float64(side[0]))) / float64(len(side)-1)
		for i := 1; i < len(side); i++ {
			if got := cdf(float64(side[i])) - cdf(float64(side[i-1])); math.Abs(got-want) > 1e-6 {
				t.Errorf("step %d of %d: probability %v, want %v", i, len(side), got, want)
			}
		}
	}
}

func TestCheckBlockSize(t *testing.T) {
	for n := -1; n < 9000; n++ {
		ok := n == 32 || n == 64 || n == 128 || n == 256 || n == 512 || n == 1024 || n == 2048 || n == 4096
		if got := CheckBlockSize(n) == nil; got != ok {
			t.Errorf("%d: allowed %v, want %v", n, got, ok)
		}
	}
}

func TestParse(t *testing.T) {
	for _, typ := range []Type{NF4, FP4} {
		if got, err := Parse(typ.String()); err != nil || got != typ {
			t.Errorf("%v: got %v, %v", typ, got, err)
		}
	}
	if _, err := Parse("NF4"); err == nil {
		t.Error("NF4 in capitals was taken")
	}
}
