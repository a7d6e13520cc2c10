package lowrank

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/guardtest"
)

// eachTier runs a test with every implementation that is there.
func eachTier(t *testing.T, f func(t *testing.T)) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			f(t)
		})
	}
}

// definition is the formula of the package, one element at a time.
func definition(dst, l, r []float32, stride int, scale float32) {
	for j := range dst {
		s := float32(l[0] * r[j])
		for k := 1; k < len(l); k++ {
			s = float32(s + float32(l[k]*r[k*stride+j]))
		}
		dst[j] = float32(s * scale)
	}
}

func bits(x []float32) []uint32 {
	out := make([]uint32, len(x))
	for i, v := range x {
		if out[i] = math.Float32bits(v); v != v {
			out[i] = 0x7fc00000 // which NaN comes out of two is nobody's promise
		}
	}
	return out
}

func check(t *testing.T, what string, got, want []float32) {
	t.Helper()
	a, b := bits(got), bits(want)
	for j := range b {
		if a[j] != b[j] {
			t.Fatalf("%s: element %d is %v, want %v", what, j, got[j], want[j])
		}
	}
}

// Every tier, rank, length and stride, with memory that ends where the slices do.
func TestRowIsTheDefinition(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, rank := range []int{1, 2, 3, 4, 5, 6, 8, 9, 13, 16, 64} {
			for _, n := range []int{0, 1, 7, 31, 32, 33, 63, 64, 65, 96, 127, 255, 256, 257, 640, 645} {
				for _, extra := range []int{0, 3} {
					stride := n + extra
					l := guardtest.Floats(t, rank, false)
					m := guardtest.Floats(t, (rank-1)*stride+n, false)
					got, want := guardtest.Floats(t, n, n%2 == 0), make([]float32, n)
					random(r, l)
					random(r, m)
					definition(want, l, m, stride, 1.75)
					Row(got, l, m, stride, 1.75)
					check(t, fmt.Sprintf("rank %d, %d columns, stride %d", rank, n, stride), got, want)
				}
			}
		}
	})
}

// Values at the edges: subnormal, huge, infinite, NaN, zeros of both signs.
func TestRowAtTheEdges(t *testing.T) {
	edges := []float32{0, float32(math.Copysign(0, -1)), 1, -1, 0x1p-149, -0x1p-130, 0x1p-126, 0x1p127, -0x1.fffffep127, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 0x1.000002p0, 3}
	eachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		const rank, n = 5, 200
		for range 50 {
			l, m, got, want := make([]float32, rank), make([]float32, rank*n), make([]float32, n), make([]float32, n)
			for _, x := range [][]float32{l, m} {
				for i := range x {
					x[i] = edges[r.IntN(len(edges))]
				}
			}
			scale := edges[r.IntN(len(edges))]
			definition(want, l, m, n, scale)
			Row(got, l, m, n, scale)
			check(t, fmt.Sprintf("scale %v", scale), got, want)
		}
	})
}

// A row computed in pieces is the row.
func TestRowInPieces(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		const rank, n = 11, 700
		l, m := make([]float32, rank), make([]float32, rank*n)
		random(r, l)
		random(r, m)
		whole, pieces := make([]float32, n), make([]float32, n)
		Row(whole, l, m, n, 0.3)
		for at := 0; at < n; {
			k := min(1+r.IntN(150), n-at)
			Row(pieces[at:at+k], l, m[at:], n, 0.3)
			at += k
		}
		check(t, "pieces", pieces, whole)
	})
}

func TestRowRefusesShortRows(t *testing.T) {
	for _, rank := range []int{0, 3} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a matrix of rank %d that is too short was accepted", rank)
				}
			}()
			Row(make([]float32, 4), make([]float32, rank), make([]float32, 11), 4, 1)
		}()
	}
}

func random(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
}

func BenchmarkRow(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, tier := range kernels.Tiers() {
		for _, rank := range []int{8, 16, 64} {
			b.Run(fmt.Sprintf("%s/rank %d", tier, rank), func(b *testing.B) {
				defer kernels.Use(tier)()
				const n = 2048
				l, m, dst := make([]float32, rank), make([]float32, rank*n), make([]float32, n)
				random(r, l)
				random(r, m)
				b.SetBytes(4 * n)
				for b.Loop() {
					Row(dst, l, m, n, 2)
				}
			})
		}
	}
}
