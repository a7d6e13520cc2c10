// Package units reads and writes sizes, rates and durations as people do.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

var factors = map[string]float64{
	"": 1, "B": 1,
	"K": 1e3, "KB": 1e3, "M": 1e6, "MB": 1e6, "G": 1e9, "GB": 1e9, "T": 1e12, "TB": 1e12,
	"KI": 1 << 10, "KIB": 1 << 10, "MI": 1 << 20, "MIB": 1 << 20, "GI": 1 << 30, "GIB": 1 << 30, "TI": 1 << 40, "TIB": 1 << 40,
}

// ParseBytes reads a size such as 5GB (decimal), 5GiB (binary), 1.5G or 4096.
func ParseBytes(s string) (int64, error) {
	t := strings.TrimSpace(s)
	i := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(t)
	}
	n, err := strconv.ParseFloat(t[:i], 64)
	f, ok := factors[strings.ToUpper(strings.TrimSpace(t[i:]))]
	if err != nil || !ok {
		return 0, fmt.Errorf("%q is no size; expected a number with KB, MB, GB, TB or KiB, MiB, GiB, TiB", s)
	}
	if n *= f; n >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return int64(n), nil
}

// Bytes is a size in decimal units with three digits: "2.47 GB".
func Bytes(n int64) string {
	return scaled(float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB"})
}

// IBytes is a size in binary units: "128 MiB".
func IBytes(n int64) string {
	return scaled(float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
}

// Count is a number of things: "1.24 B" for 1.24 billion.
func Count(n int64) string {
	return strings.TrimSpace(scaled(float64(n), 1000, []string{"", "k", "M", "B", "T"}))
}

// Things counts what a noun names: "1 tensor", "39 tensors".
func Things[N int | int64](n N, noun string) string {
	return fmt.Sprintf("%d %s", n, Plural(n, noun))
}

// Plural is the noun as it follows a number.
func Plural[N int | int64](n N, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// Rate is bytes per second.
func Rate(bytes int64, d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return Bytes(int64(float64(bytes)/d.Seconds())) + "/s"
}

func scaled(v, base float64, names []string) string {
	i := 0
	for v >= base*0.9995 && i < len(names)-1 {
		v /= base
		i++
	}
	digits := 0
	if i > 0 {
		digits = max(0, 2-int(math.Log10(math.Max(v, 1))))
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + names[i]
}

// Duration is rounded to what people read: "850 ms", "12.3 s", "4m05s".
func Duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}
