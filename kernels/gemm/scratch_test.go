package gemm

import "testing"

// Scratch is a limit for what a Multiplier holds, and not much more than that.
func TestScratch(t *testing.T) {
	for _, s := range []struct{ threads, m, n, k int }{{1, 1, 40, 300}, {2, 60, 300, 500}, {3, 1000, 260, 70}, {2, 3000, 64, 4000}} {
		g := New(s.threads)
		c, a := make([]float32, s.m*s.n), make([]float32, s.m*s.k)
		g.Mul(c, s.n, a, s.k, s.m, F32(make([]float32, s.n*s.k), s.n, s.k), false)
		packed, held := 4*int64(cap(g.packed)), 4*int64(cap(g.packed))
		for i := range g.workers {
			held += 4 * int64(cap(g.workers[i].w)+cap(g.workers[i].c))
		}
		if limit := Scratch(s.threads, s.m, s.k); held > limit {
			t.Errorf("%+v: %d bytes held, %d said", s, held, limit)
		} else if rest := limit - Scratch(s.threads, 0, s.k); s.m > 100 && packed < rest/2 {
			t.Errorf("%+v: %d bytes packed, %d said", s, packed, rest)
		}
	}
}
