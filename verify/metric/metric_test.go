package metric

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if !(math.Abs(got-want) <= 1e-12*max(1, math.Abs(want))) {
		t.Errorf("%s: %.17g, want %.17g", what, got, want)
	}
}

func TestMoments(t *testing.T) {
	var m Moments
	for _, x := range []float64{1, 2, 4, 9} {
		m.Add(x)
	}
	e := m.Estimate()
	near(t, "mean", e.Value, 4)
	near(t, "standard error", e.StdErr, math.Sqrt(38.0/3/4)) // deviations 9 + 4 + 0 + 25
	if e := (Moments{}).Estimate(); !math.IsNaN(e.Value) {
		t.Errorf("empty mean: %v, want NaN", e.Value)
	}
}

// TestQuantile: values of numpy.quantile([4, 1, 3, 2], ...).
func TestQuantile(t *testing.T) {
	var d Distribution
	d.Add(4, 1, 3, 2)
	for _, c := range [][2]float64{{0, 1}, {0.25, 1.75}, {0.5, 2.5}, {0.9, 3.7}, {1, 4}} {
		near(t, "quantile", d.Quantile(c[0]).Value, c[1])
	}
	near(t, "maximum", d.Max().Value, 4)
	d.Add(math.NaN())
	if !math.IsNaN(d.Quantile(0.5).Value) || !math.IsNaN(d.Max().Value) {
		t.Error("a NaN among the values does not show")
	}
}

// TestCompare: two distributions over three tokens, by hand.
func TestCompare(t *testing.T) {
	p := []float32{float32(math.Log(0.5)), float32(math.Log(0.25)), float32(math.Log(0.25))}
	q := []float32{float32(math.Log(1)), float32(math.Log(2)), float32(math.Log(1))} // 1/4 1/2 1/4
	k := Compare(p, q, 1)
	if want := 0.25 * math.Ln2; math.Abs(k.KLD-want) > 1e-7 { // .5 ln 2 - .25 ln 2
		t.Errorf("kld %v, want %v", k.KLD, want)
	}
	if math.Abs(k.Base-math.Log(4)) > 1e-7 || math.Abs(k.Candidate-math.Log(2)) > 1e-7 {
		t.Errorf("-ln p %v %v, want ln 4, ln 2", k.Base, k.Candidate)
	}
	if k.Same1 != 0 || k.Same5 != 1 {
		t.Errorf("same %v %v, want 0 and 1", k.Same1, k.Same5)
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1)} {
		if k := Compare(p, []float32{0, float32(bad), 0}, 1); !math.IsNaN(k.KLD) {
			t.Errorf("kld with a logit of %v: %v, want NaN", bad, k.KLD)
		}
	}
}

func TestTop(t *testing.T) {
	if got, want := topOf(1, 7, 7, 0, 3, 9, 2, 3), [Top]int{5, 1, 2, 4, 7}; got != want {
		t.Errorf("top %v, want %v", got, want)
	}
}

// TestMerge: parts give what the whole gives.
func TestMerge(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	logits := func() []float32 {
		v := make([]float32, 50)
		for i := range v {
			v[i] = float32(rnd.NormFloat64() * 3)
		}
		return v
	}
	var whole Logits
	var parts [3]Logits
	var vectors Vectors
	var pieces [3]Vectors
	for i := range 300 {
		x, y := logits(), logits()
		k := Compare(x, y, i%50)
		whole.Add(k, i%7 != 0)
		parts[i*i%3].Add(k, i%7 != 0)
		vectors.Add(CompareRow(x, y))
		pieces[i%3].Add(CompareRow(x, y))
	}
	var merged Logits
	var joined Vectors
	for i := range parts {
		merged.Merge(&parts[i])
		joined.Merge(pieces[i])
	}
	for _, c := range []struct {
		what      string
		got, want Estimate
	}{
		{"kld", merged.KLD.Estimate(), whole.KLD.Estimate()},
		{"p99", merged.KLDs.Quantile(0.99), whole.KLDs.Quantile(0.99)},
		{"max", Estimate{merged.KLDs.Max().Value, 0}, Estimate{whole.KLDs.Max().Value, 0}},
		{"top1", merged.Same1.Estimate(), whole.Same1.Estimate()},
		{"top5", merged.Same5.Estimate(), whole.Same5.Estimate()},
		{"ppl", merged.PerplexityBase(), whole.PerplexityBase()},
		{"ppl of the candidate", merged.PerplexityCandidate(), whole.PerplexityCandidate()},
		{"ratio", merged.PerplexityRatio(), whole.PerplexityRatio()},
		{"dp", merged.DeltaP.Estimate(), whole.DeltaP.Estimate()},
		{"rms", merged.RMSDeltaP(), whole.RMSDeltaP()},
		{"vectors", Estimate{joined.RelError(), joined.MinCosine}, Estimate{vectors.RelError(), vectors.MinCosine}},
	} {
		if !(math.Abs(c.got.Value-c.want.Value) <= 1e-11*math.Abs(c.want.Value)) || !(math.Abs(c.got.StdErr-c.want.StdErr) <= 1e-11*math.Abs(c.want.StdErr)) {
			t.Errorf("%s: %v in parts, %v as a whole", c.what, c.got, c.want)
		}
	}
}

func topOf(x ...float32) (index [Top]int) {
	var b best
	b.add(0, x)
	for i, k := range b.index {
		index[i] = int(k)
	}
	return index
}

// TestPartial: a vocabulary in parts gives what it gives as a whole, by the definition.
func TestPartial(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		n := 5 + rnd.IntN(3000)
		a, b := make([]float32, n), make([]float32, n)
		for i := range a {
			a[i] = float32(rnd.NormFloat64()*3 + 40*math.Sin(float64(i)/500))
			b[i] = a[i] + float32(rnd.NormFloat64()/10)
			if rnd.IntN(20) == 0 {
				b[i] = b[rnd.IntN(i+1)] // ties
			}
		}
		next := rnd.IntN(n+1) - 1
		want := definition(a, b, next)
		var p Partial
		for at := 0; at < n; {
			k := min(n-at, rnd.IntN(1000))
			p.Add(at, a[at:at+k], b[at:at+k], next)
			at += k
		}
		for _, got := range []Token{p.Token(), Compare(a, b, next)} {
			if math.Abs(got.KLD-want.KLD) > 1e-12 || math.Abs(got.Base-want.Base) > 1e-12 || math.Abs(got.Candidate-want.Candidate) > 1e-12 {
				t.Fatalf("%d tokens: %+v, want %+v", n, got, want)
			}
			if got.Same1 != want.Same1 || math.Abs(got.Same5-want.Same5) > 1e-12 {
				t.Fatalf("%d tokens: same %v %v, want %v %v", n, got.Same1, got.Same5, want.Same1, want.Same5)
			}
		}
		if k := Compare(a, a, next); k.KLD != 0 || k.Same1 != 1 || k.Same5 != 1 {
			t.Fatalf("a distribution against itself: %+v", k)
		}
	}
}

// definition is what Token says, term by term.
func definition(base, candidate []float32, next int) Token {
	lse := func(x []float32) float64 {
		sum := 0.0
		for _, v := range x {
			sum += math.Exp(float64(v))
		}
		return math.Log(sum)
	}
	p, q := lse(base), lse(candidate)
	var t Token
	for i, v := range base {
		lp := float64(v) - p
		t.KLD += math.Exp(lp) * (lp - (float64(candidate[i]) - q))
	}
	if next >= 0 {
		t.Base, t.Candidate = p-float64(base[next]), q-float64(candidate[next])
	}
	order := func(x []float32) []int {
		index := make([]int, len(x))
		for i := range index {
			index[i] = i
		}
		slices.SortStableFunc(index, func(i, k int) int { return cmp.Compare(x[k], x[i]) })
		return index[:Top]
	}
	a, b := order(base), order(candidate)
	if a[0] == b[0] {
		t.Same1 = 1
	}
	for _, k := range a {
		if slices.Contains(b, k) {
			t.Same5 += 1.0 / Top
		}
	}
	return t
}
