package kernels

import "testing"

func TestSecondLevel(t *testing.T) {
	type leaf struct{ leaf, sub uint32 }
	for name, c := range map[string]struct {
		answers       map[leaf][4]uint32
		size, sharers int
	}{
		// As a Sapphire Rapids and a Zen 5 answer, in the leaves that are read.
		"Intel, 2 MiB for two threads": {map[leaf][4]uint32{
			{0, 0}: {0x20}, {0x80000000, 0}: {0x80000008},
			{4, 0}: {0x7c004121, 0x02c0003f, 63}, {4, 1}: {0x7c004122, 0x01c0003f, 63}, {4, 2}: {0x7c004143, 0x03c0003f, 2047}, {4, 3}: {0x7c0fc163, 0x0380003f, 114687},
		}, 2 << 20, 2},
		"AMD, 1 MiB": {map[leaf][4]uint32{
			{0, 0}: {0x10}, {0x80000000, 0}: {0x80000028},
			{0x8000001d, 0}: {0x121, 0x02c0003f, 63}, {0x8000001d, 1}: {0x122, 0x01c0003f, 63}, {0x8000001d, 2}: {0x143, 0x03c0003f, 1023}, {0x8000001d, 3}: {0x163, 0x03c0003f, 32767},
		}, 1 << 20, 1},
		"instructions only": {map[leaf][4]uint32{{0, 0}: {4}, {4, 0}: {0x142, 0x03c0003f, 1023}}, usualL2, 1},
		"no leaf 4":         {map[leaf][4]uint32{{0, 0}: {2}, {4, 0}: {0x143, 0x03c0003f, 1023}}, usualL2, 1},
	} {
		size, sharers := secondLevel(func(l, s uint32) (a, b, c_, d uint32) {
			x := c.answers[leaf{l, s}]
			return x[0], x[1], x[2], x[3]
		})
		if size != c.size || sharers != c.sharers {
			t.Errorf("%s: %d bytes for %d threads, want %d for %d", name, size, sharers, c.size, c.sharers)
		}
	}
}

func TestL2(t *testing.T) {
	one, many := L2(1), L2(1000)
	if one < 64<<10 || one > 1<<30 || many < 1 || many > one {
		t.Errorf("a thread may count on %d bytes alone and on %d among 1000", one, many)
	}
	t.Logf("%d bytes alone, %d among many", one, many)
}
