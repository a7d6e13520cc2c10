package lora

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// made is a random merge of a [rows, cols] matrix and its factors in PEFT's layout.
type made struct {
	rows, cols int
	a, b       [][]float32 // A [rank, cols], B [rows, rank]
	rank       []int
	scale      []float32
}

func makeTerms(r *rand.Rand, rows, cols int, ranks ...int) made {
	m := made{rows: rows, cols: cols, rank: ranks}
	for _, k := range ranks {
		m.a, m.b = append(m.a, random(r, k*cols)), append(m.b, random(r, rows*k))
		m.scale = append(m.scale, float32(r.Float64()*4-2))
	}
	return m
}

func (m *made) terms() []Term {
	var out []Term
	for i, k := range m.rank {
		out = append(out, Term{NewProduct(m.rows, m.cols, k, m.b[i], m.a[i], m.scale[i])})
	}
	return out
}

// delta is the definition, in float64.
func (m *made) delta(i, row, col int) float64 {
	var s float64
	for k := range m.rank[i] {
		s += float64(m.b[i][row*m.rank[i]+k]) * float64(m.a[i][k*m.cols+col])
	}
	return s * float64(m.scale[i])
}

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// bf16 rounds to the upper half of the bits, ties to even.
func bf16(x []float32) {
	for i, v := range x {
		b := math.Float32bits(v)
		x[i] = math.Float32frombits((b + 0x7fff + b>>16&1) &^ 0xffff)
	}
}

func near(a float32, b, scale float64) bool {
	return math.Abs(float64(a)-b) <= 1e-6*(scale+math.Abs(b))
}

func TestApplyIsTheSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, ranks := range [][]int{{1}, {8}, {3, 5}, {2, 2, 9}} {
		m := makeTerms(r, 37, 301, ranks...)
		w := random(r, m.rows*m.cols)
		v, d := slices.Clone(w), make([]float32, len(w))
		merge := Merge{Terms: m.terms()}
		merge.Apply(v, d, 0)
		for i := range v {
			var want, size float64
			for k := range ranks {
				x := m.delta(k, i/m.cols, i%m.cols)
				want, size = want+x, size+math.Abs(x)
			}
			size += 10 // the terms of the sums are of this order
			if !near(d[i], want, size) || !near(v[i], float64(w[i])+want, size) || v[i] != w[i]+d[i] {
				t.Fatalf("ranks %v, element %d: %v + %v = %v, want %v", ranks, i, w[i], d[i], v[i], want)
			}
		}
		pieces(t, r, &merge, w, v, d)
	}
}

// pieces holds a merge of arbitrary ranges to that of the whole.
func pieces(t *testing.T, r *rand.Rand, m *Merge, w, v, d []float32) {
	t.Helper()
	for at := 0; at < len(w); {
		n := min(1+r.IntN(5000), len(w)-at)
		x, y := slices.Clone(w[at:at+n]), make([]float32, n)
		m.Apply(x, y, int64(at))
		if !slices.Equal(x, v[at:at+n]) || !slices.Equal(y, d[at:at+n]) {
			t.Fatalf("elements %d to %d differ from those of the whole", at, at+n)
		}
		at += n
	}
}

// Safe rounds every delta, and every sum but the last.
func TestApplySafe(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	m := makeTerms(r, 19, 40, 4, 6)
	w := random(r, m.rows*m.cols)
	bf16(w)
	v, d := slices.Clone(w), make([]float32, len(w))
	merge := Merge{Terms: m.terms(), Safe: true, Round: bf16}
	merge.Apply(v, d, 0)
	pieces(t, r, &merge, w, v, d)
	want := slices.Clone(w)
	for k, term := range merge.Terms {
		x := make([]float32, len(w))
		term.fill(x, 0)
		bf16(x)
		if k > 0 {
			bf16(want)
		}
		for i := range want {
			want[i] += x[i]
		}
	}
	if !slices.Equal(v, want) {
		t.Error("not the sum of rounded deltas")
	}
}

// Nothing is added where a factor is zero: -0 stays -0.
func TestZeroFactor(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	negative := float32(math.Copysign(0, -1))
	for _, zero := range []string{"left", "right", "scale"} {
		m := makeTerms(r, 3, 5, 2)
		switch zero {
		case "left":
			clear(m.b[0])
		case "right":
			clear(m.a[0])
		default:
			m.scale[0] = 0
		}
		v, d := []float32{negative, 1, 2}, make([]float32, 3)
		merge := Merge{Terms: m.terms()}
		merge.Apply(v, d, 1)
		if !merge.Zero() || math.Float32bits(v[0]) != math.Float32bits(negative) || v[1] != 1 || d[1] != 0 {
			t.Errorf("%s: %v and %v, zero is %v", zero, v, d, merge.Zero())
		}
	}
}

// DoRA: V = m / ||W + D|| * (W + D), by row or by column.
func TestScaling(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, byColumn := range []bool{false, true} {
		m := makeTerms(r, 70, 300, 4) // more than one piece of the pass that makes norms
		w := random(r, m.rows*m.cols)
		n := m.rows
		if byColumn {
			n = m.cols
		}
		magnitude := random(r, n)
		merge := Merge{Terms: m.terms(), Scaling: NewScaling(magnitude, int64(m.cols), byColumn)}
		bad, err := merge.Norms(int64(len(w)), func(v []float32, first int64) error {
			copy(v, w[first:])
			return nil
		})
		if bad >= 0 || err != nil {
			t.Fatal(bad, err)
		}
		v, d := slices.Clone(w), make([]float32, len(w))
		merge.Apply(v, d, 0)
		pieces(t, r, &merge, w, v, d)
		at := func(i, j int) float64 { return float64(w[i*m.cols+j]) + m.delta(0, i, j) }
		for i := range m.rows {
			for j := range m.cols {
				var norm float64
				if byColumn {
					for k := range m.rows {
						norm += at(k, j) * at(k, j)
					}
				} else {
					for k := range m.cols {
						norm += at(i, k) * at(i, k)
					}
				}
				of := i
				if byColumn {
					of = j
				}
				want := float64(magnitude[of]) / math.Sqrt(norm) * at(i, j)
				if got := v[i*m.cols+j]; !near(got, want, 1) {
					t.Fatalf("by column %v: element %d, %d is %v, want %v", byColumn, i, j, got, want)
				}
			}
			if i == 3 && byColumn { // a column's norm is a sum over all rows: a few are enough
				break
			}
		}
	}
	s := NewScaling([]float32{1, 1}, 2, false)
	s.Add([]float32{0, 0, 1, 1}, 0)
	if bad := s.Finish(); bad != 0 {
		t.Errorf("the first bad row is %d, want 0", bad)
	}
}

// With m the norms themselves DoRA is the plain merge, to the last rounding.
func TestScalingByOwnNorms(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	m := makeTerms(r, 8, 16, 3)
	w := random(r, 8*16)
	plain, d := slices.Clone(w), make([]float32, len(w))
	(&Merge{Terms: m.terms()}).Apply(plain, d, 0)
	norms := make([]float32, 8)
	for i := range norms {
		var s float64
		for _, x := range plain[i*16:][:16] {
			s += float64(x) * float64(x)
		}
		norms[i] = float32(math.Sqrt(s))
	}
	merge := Merge{Terms: m.terms(), Scaling: NewScaling(norms, 16, false)}
	if _, err := merge.Norms(8*16, func(v []float32, first int64) error { copy(v, w[first:]); return nil }); err != nil {
		t.Fatal(err)
	}
	v := slices.Clone(w)
	merge.Apply(v, d, 0)
	if !slices.Equal(v, plain) {
		t.Error("the scaling by 1 changed something")
	}
}

// The layouts of the package's table, element by element.
func TestLayouts(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	const in, out, rank = 6, 4, 3
	a, b := random(r, rank*in), random(r, out*rank)
	linear, turned := make([]float32, in*out), make([]float32, in*out)
	p := NewProduct(out, in, rank, b, a, 1.5)
	p.Fill(linear, 0)
	q := NewProduct(in, out, rank, Transpose(a, rank, in), Transpose(b, out, rank), 1.5)
	q.Fill(turned, 0)
	if !slices.Equal(Transpose(linear, out, in), turned) {
		t.Error("the transposed layout is not the transpose")
	}
}

// Experts: PEFT's order, rows of A with the expert slowest, columns of B with it fastest.
func TestExpertColumns(t *testing.T) {
	const experts, rank, y = 3, 2, 4
	b := make([]float32, y*rank*experts)
	for i := range b {
		b[i] = float32(i)
	}
	for e := range experts {
		got := ExpertColumns(b, experts, rank, y, e)
		for i := range y {
			for k := range rank {
				if want := float32(i*rank*experts + k*experts + e); got[i*rank+k] != want {
					t.Errorf("expert %d, element %d, %d is %v, want %v", e, i, k, got[i*rank+k], want)
				}
			}
		}
	}
	stack := Term{NewProduct(2, 3, 1, []float32{1, 2}, []float32{1, 1, 1}, 1), NewProduct(2, 3, 1, []float32{3, 4}, []float32{1, 1, 1}, 1)}
	got := make([]float32, 8)
	stack.fill(got, 3)
	if want := []float32{2, 2, 2, 3, 3, 3, 4, 4}; !slices.Equal(got, want) {
		t.Errorf("elements 3 to 10 of the stack are %v, want %v", got, want)
	}
}

func TestMoments(t *testing.T) {
	m := Measure([]float32{1, 2, 2}, []float32{0.5, 0, -1}, []float32{1.5, 2, 2})
	if m.N != 3 || m.Changed != 1 || m.WW != 9 || m.DD != 1.25 || m.RD != 0.25 {
		t.Errorf("%+v", m)
	}
	if m.Kept() != 0.2 || m.ChangedShare() != 1.0/3 || m.Relative() != math.Sqrt(1.25)/3 {
		t.Errorf("kept %v, changed %v, relative %v", m.Kept(), m.ChangedShare(), m.Relative())
	}
	m.Add(m)
	if m.N != 6 || m.DD != 2.5 {
		t.Errorf("%+v", m)
	}
	var none Moments
	if none.Kept() != 1 || none.Relative() != 0 || none.ChangedShare() != 0 {
		t.Errorf("of nothing: %v, %v, %v", none.Kept(), none.Relative(), none.ChangedShare())
	}
}
