package units

import (
	"testing"
	"time"
)

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "4096": 4096, "5GB": 5e9, "5GiB": 5 << 30, "1.5G": 15e8, "2 MiB": 2 << 20, "7kb": 7000, "1T": 1e12, "3B": 3,
	} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "GB", "-1", "5 GBs", "1e3", "9999999TB", "0x10", "1.2.3M"} {
		if got, err := ParseBytes(s); err == nil {
			t.Errorf("%q was taken for %d", s, got)
		}
	}
}

func TestText(t *testing.T) {
	for _, c := range [][2]string{
		{Bytes(0), "0 B"}, {Bytes(999), "999 B"}, {Bytes(1000), "1.00 kB"}, {Bytes(2471645608), "2.47 GB"}, {Bytes(12_345_678), "12.3 MB"},
		{Bytes(999_999), "1.00 MB"}, {IBytes(128 << 20), "128 MiB"}, {Count(1_235_814_400), "1.24 B"}, {Count(7), "7"},
		{Rate(5e9, 2*time.Second), "2.50 GB/s"}, {Rate(1, 0), "-"},
		{Duration(850 * time.Millisecond), "850 ms"}, {Duration(12300 * time.Millisecond), "12.3 s"}, {Duration(245 * time.Second), "4m05s"}, {Duration(2*time.Hour + time.Minute), "2h01m"},
	} {
		if c[0] != c[1] {
			t.Errorf("got %q, want %q", c[0], c[1])
		}
	}
}

func TestThings(t *testing.T) {
	for n, want := range map[int]string{0: "0 tensors", 1: "1 tensor", 2: "2 tensors"} {
		if got := Things(n, "tensor"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
