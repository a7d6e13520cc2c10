package lora

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"
)

func makePairs(r *rand.Rand, out, in int, ranks ...int) []Pair {
	var ps []Pair
	for _, k := range ranks {
		ps = append(ps, Pair{Rank: k, A: random(r, k*in), B: random(r, out*k), Scale: r.Float64() + 0.5, Weight: r.Float64()*4 - 2})
	}
	return ps
}

// dense is the weighted sum of the deltas by definition.
func dense(out, in int, ps []Pair) *mat.Dense {
	d := mat.NewDense(out, in, nil)
	for _, p := range ps {
		for i := range out {
			for j := range in {
				var s float64
				for k := range p.Rank {
					s += float64(p.B[i*p.Rank+k]) * float64(p.A[k*in+j])
				}
				d.Set(i, j, d.At(i, j)+p.Weight*p.Scale*s)
			}
		}
	}
	return d
}

// The truncation through QR has the singular values and the residual of the full
// decomposition of the whole matrix, also when ranks add up to more than a side has.
func TestTruncateAgainstFull(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	for _, c := range []struct{ out, in int }{{40, 30}, {30, 40}, {7, 50}, {50, 7}, {5, 5}} {
		ps := makePairs(r, c.out, c.in, 4, 2, 5)
		d := dense(c.out, c.in, ps)
		var svd mat.SVD
		svd.Factorize(d, mat.SVDThin)
		s := svd.Values(nil)
		for _, n := range []int{1, 3, 0} {
			f := Truncate(c.out, c.in, ps, Rank{N: n})
			var rest float64
			for _, v := range s[f.Rank:] {
				rest += v * v
			}
			want := math.Sqrt(rest)
			for k, v := range f.S {
				if math.Abs(v-s[k]) > 1e-10*s[0] {
					t.Errorf("%v: singular value %d is %v, want %v", c, k, v, s[k])
				}
			}
			back := dense(c.out, c.in, []Pair{{Rank: f.Rank, A: f.R, B: f.L, Scale: 1, Weight: 1}})
			back.Sub(back, d)
			if gap := mat.Norm(back, 2); math.Abs(gap-f.Residual) > 1e-9*f.Norm || math.Abs(gap-want) > 1e-6*f.Norm || n > 0 && f.Rank != min(n, len(s)) {
				t.Errorf("%v, rank %d of %d: residual %v, measured %v, best %v", c, f.Rank, n, f.Residual, gap, want)
			}
			if n == 0 && f.Rank != min(c.out, c.in, 11) {
				t.Errorf("%v: rank %d", c, f.Rank)
			}
		}
	}
}

// What cancels leaves one direction of zeros; what is there twice has its rank once.
func TestTruncateDegenerate(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 24))
	p := makePairs(r, 20, 30, 4)[0]
	q := p
	q.Weight = 2 * p.Weight
	if f := Truncate(20, 30, []Pair{p, q}, Rank{}); f.Rank != 4 || f.Relative() > 1e-6 {
		t.Errorf("rank %d, residual %v", f.Rank, f.Relative())
	}
	q.Weight = -p.Weight
	if f := Truncate(20, 30, []Pair{p, q}, Rank{}); f.Rank != 1 || f.Norm != 0 || !allZero(f.L) {
		t.Errorf("what cancels: %+v", f)
	}
	clear(p.B)
	if f := Truncate(20, 30, []Pair{p}, Rank{Energy: 0.5}); f.Rank != 1 || f.Norm != 0 || f.Residual != 0 || !allZero(f.L) {
		t.Errorf("%+v", f)
	}
}

func TestCatIsTheSum(t *testing.T) {
	r := rand.New(rand.NewPCG(25, 26))
	ps := makePairs(r, 11, 13, 3, 1, 4)
	f := Cat(11, 13, ps)
	if gap := Distance(11, 13, ps, f) / Norm(11, 13, ps); f.Rank != 8 || gap > 1e-7 {
		t.Errorf("rank %d, %v away", f.Rank, gap)
	}
}

// definition prunes, elects and sums by sorting and counting.
func definition(tasks [][]float32, weights []float32, b Blend, masks []Mask) []float32 {
	n := len(tasks[0])
	var ps [][]float32
	for i, x := range tasks {
		p := slices.Clone(x)
		switch {
		case b.Density >= 1 || b.Prune == PruneNone:
		case b.Prune == PruneMagnitude:
			order := make([]int, n)
			for j := range order {
				order[j] = j
			}
			slices.SortStableFunc(order, func(a, c int) int { return cmp.Compare(math.Abs(float64(x[c])), math.Abs(float64(x[a]))) })
			for _, j := range order[int(b.Density*float64(n)):] {
				p[j] = 0
			}
		default:
			for j := range p {
				if !masks[i](j) {
					p[j] = 0
				}
				p[j] /= float32(b.Density)
			}
		}
		ps = append(ps, p)
	}
	out := make([]float32, n)
	for j := range n {
		var total, sum, count float32
		for i := range ps {
			v := ps[i][j]
			if b.Elect == ElectFrequency && v != 0 {
				v = float32(math.Copysign(1, float64(v)))
			}
			total += v
		}
		for i := range ps {
			if v := ps[i][j]; b.Elect == ElectNone || v != 0 && (v > 0) == (total >= 0) {
				sum += float32(weights[i] * v)
				count++
			}
		}
		if b.Elect != ElectNone && count > 0 {
			sum /= count
		}
		out[j] = sum
	}
	return out
}

// Every kind of pruning and election is the definition, of whole tensors and of deltas
// that are made row by row; equal magnitudes are many here.
func TestBlend(t *testing.T) {
	r := rand.New(rand.NewPCG(27, 28))
	const out, in = 9, 14
	for _, density := range []float64{0.001, 0.3, 0.77, 1} {
		for _, prune := range []Prune{PruneNone, PruneMagnitude, PruneRandom} {
			for _, elect := range []Elect{ElectNone, ElectTotal, ElectFrequency} {
				var ps []Pair
				var tasks [][]float32
				var weights []float32
				for range 3 {
					p := Pair{Rank: 2, A: make([]float32, 2*in), B: make([]float32, out*2), Scale: 0.5, Weight: r.Float64()*3 - 1}
					for _, x := range [][]float32{p.A, p.B} {
						for i := range x {
							x[i] = float32(r.IntN(7) - 3)
						}
					}
					d := make([]float32, out*in)
					product := NewProduct(out, in, 2, p.B, p.A, 0.5)
					product.Fill(d, 0)
					ps, tasks, weights = append(ps, p), append(tasks, d), append(weights, float32(p.Weight))
				}
				masks := []Mask{Keep(1, density), Keep(2, density), Keep(3, density)}
				b := Blend{Prune: prune, Elect: elect, Density: density, Mask: func(i int, _ Part) Mask { return masks[i] }}
				want := definition(tasks, weights, b, masks)
				got := make([]float32, out*in)
				if b.Delta(got, out, in, ps); !slices.Equal(got, want) {
					t.Errorf("density %v, prune %d, elect %d: deltas are not the definition", density, prune, elect)
				}
				if b.Apply(got, tasks, weights, PartA); !slices.Equal(got, want) {
					t.Errorf("density %v, prune %d, elect %d: tensors are not the definition", density, prune, elect)
				}
			}
		}
	}
}

// Masks keep the share that they are asked for, and those of two keys have nothing in
// common: five standard deviations.
func TestKeep(t *testing.T) {
	const n = 1 << 18
	for _, density := range []float64{0.1, 0.5, 0.9, 1} {
		x, y := Keep(MaskKey(7, "0/q/A"), density), Keep(MaskKey(7, "1/q/A"), density)
		var kept, both float64
		for j := range n {
			if x(j) {
				if kept++; y(j) {
					both++
				}
			}
		}
		limit := func(p float64) float64 { return 5 * math.Sqrt(n*p*(1-p)) }
		if math.Abs(kept-n*density) > limit(density) || math.Abs(both-n*density*density) > limit(density*density) {
			t.Errorf("density %v: %v kept, %v by both", density, kept, both)
		}
	}
	if MaskKey(0, "") == MaskKey(1, "") || MaskKey(0, "a") == MaskKey(0, "b") {
		t.Error("keys are the same")
	}
}

// What is found without sorting is what sorting finds.
func FuzzLargest(f *testing.F) {
	f.Add(uint64(1), 3)
	f.Add(uint64(2), 0)
	f.Fuzz(func(t *testing.T, seed uint64, k int) {
		r := rand.New(rand.NewPCG(seed, 1))
		x := make([]float32, 1+r.IntN(200))
		for i := range x {
			x[i] = float32(r.IntN(20)-10) * float32(math.Pow(2, float64(r.IntN(60)-30)))
		}
		if k < 0 || k > len(x) {
			return
		}
		limit, equal := largest(x, k)
		n := 0
		for _, v := range x {
			if b := math.Float32bits(v) &^ (1 << 31); b > limit {
				n++
			} else if b == limit && equal > 0 {
				n, equal = n+1, equal-1
			}
		}
		if n != k || equal > 0 {
			t.Errorf("%d of %d are kept, want %d", n, len(x), k)
		}
	})
}
