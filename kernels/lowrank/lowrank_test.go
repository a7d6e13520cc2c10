package lowrank

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// definition is the formula of the package, one element at a time.
func definition(dst, l, r []float32, stride int, scale float32, add bool) {
	for j := range dst {
		var s float32
		for k := range l {
			p := float32(l[k] * r[k*stride+j])
			if k == 0 {
				s = p
			} else {
				s = float32(s + p)
			}
		}
		s = float32(s * scale)
		if add {
			s = float32(dst[j] + s)
		}
		dst[j] = s
	}
}

func TestRowIsTheDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, rank := range []int{0, 1, 2, 3, 4, 5, 8, 9, 13, 16, 64} {
		for _, n := range []int{0, 1, 2, 7, 8, 9, 31, 33, tile - 1, tile, tile + 1, 2*tile + 5} {
			for _, extra := range []int{0, 3} {
				stride := n + extra
				l, m, want := random(r, rank), random(r, rank*stride), random(r, n)
				got := append([]float32{}, want...)
				for _, add := range []bool{false, true} {
					definition(want, l, m, stride, 1.75, add)
					Row(got, l, m, stride, 1.75, add)
					for j := range want {
						if math.Float32bits(got[j]) != math.Float32bits(want[j]) {
							t.Fatalf("rank %d, %d columns, stride %d, add %v: element %d is %v, want %v", rank, n, stride, add, j, got[j], want[j])
						}
					}
				}
			}
		}
	}
}

// A row computed in pieces is the row.
func TestRowInPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const rank, n = 11, 700
	l, m := random(r, rank), random(r, rank*n)
	whole, pieces := make([]float32, n), make([]float32, n)
	Row(whole, l, m, n, 0.3, false)
	for at := 0; at < n; {
		k := min(1+r.IntN(90), n-at)
		Row(pieces[at:at+k], l, m[at:], n, 0.3, false)
		at += k
	}
	for j := range whole {
		if whole[j] != pieces[j] {
			t.Fatalf("element %d is %v in pieces, %v whole", j, pieces[j], whole[j])
		}
	}
}

func TestRowRefusesShortRows(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a matrix that is too short was accepted")
		}
	}()
	Row(make([]float32, 4), make([]float32, 3), make([]float32, 11), 4, 1, false)
}

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func BenchmarkRow(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, rank := range []int{8, 16, 64} {
		b.Run(fmt.Sprintf("rank %d", rank), func(b *testing.B) {
			const n = 2048
			l, m, dst := random(r, rank), random(r, rank*n), make([]float32, n)
			b.SetBytes(4 * n)
			for b.Loop() {
				Row(dst, l, m, n, 2, false)
			}
		})
	}
}
