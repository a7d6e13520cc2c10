package model

import "math"

// RopeKind is how the frequencies of a rotary embedding are scaled.
type RopeKind string

// The kinds, as config.json names them.
const (
	RopeDefault      RopeKind = "default"
	RopeLinear       RopeKind = "linear"
	RopeDynamic      RopeKind = "dynamic"
	RopeYarn         RopeKind = "yarn"
	RopeLong         RopeKind = "longrope"
	RopeLlama3       RopeKind = "llama3"
	RopeProportional RopeKind = "proportional"
)

// Rope rotates pairs of a head's elements by position times frequency (Su et al. 2021,
// RoFormer, arXiv 2104.09864). With d = Dim and b = Theta, frequency i is
//
//	default       b^(-2i/d)
//	linear        that, divided by Factor
//	dynamic       with b * (Factor*n/MaxPositions - (Factor-1))^(d/(d-2)) for rows of n > MaxPositions tokens ("NTK-aware")
//	yarn          between default and linear, by a ramp over i (Peng et al. 2023, arXiv 2309.00071)
//	longrope      divided by Long[i] for rows of more than Original tokens, by Short[i] otherwise (Ding et al. 2024, arXiv 2402.13753)
//	llama3        default for short wavelengths, linear for long ones, blended between
//	proportional  linear, and zero from i = Turning on
//
// and cosines and sines are multiplied by Attention. Pairs are (i, i+d/2), or with
// Interleaved (2i, 2i+1). Elements from Dim on are left alone.
type Rope struct {
	Kind          RopeKind
	Theta         float64
	Dim           int
	First         int // the first rotated element of a head
	Turning       int // of proportional
	Interleaved   bool
	Factor        float64
	Attention     float64
	LongAttention float64 // for rows of more than Original tokens; 0: Attention
	MaxPositions  int
	Original      int
	BetaFast      float64
	BetaSlow      float64
	Truncate      bool
	LowFreq       float64
	HighFreq      float64
	Short, Long   []float64
}

// variant is what the frequencies depend on besides the Rope: the columns of a row, where
// they matter.
func (r *Rope) variant(width int) int {
	switch {
	case r.Kind == RopeDynamic && width > r.MaxPositions:
		return width
	case r.Kind == RopeLong && width > r.Original:
		return 1
	}
	return 0
}

// frequencies are float32, as the angle is a float32 product in the models.
func (r *Rope) frequencies(variant int) []float32 {
	base := r.Theta
	if r.Kind == RopeDynamic && variant > 0 {
		n, m, d := float64(variant), float64(r.MaxPositions), float64(r.Dim)
		base *= math.Pow(r.Factor*n/m-(r.Factor-1), d/(d-2))
	}
	f := make([]float32, r.Dim/2)
	for i := range f {
		power := math.Pow(base, float64(float32(2*i)/float32(r.Dim)))
		switch r.Kind {
		case RopeYarn:
			f[i] = r.yarn(i, power)
		case RopeLlama3:
			f[i] = r.llama3(float64(float32(1 / power)))
		case RopeLong:
			factors := r.Short
			if variant > 0 {
				factors = r.Long
			}
			f[i] = float32(1 / (factors[i] * power))
		case RopeLinear:
			f[i] = float32(1 / power / r.Factor)
		case RopeProportional:
			if i < r.Turning {
				f[i] = float32(1 / power / r.Factor)
			}
		default:
			f[i] = float32(1 / power)
		}
	}
	return f
}

// yarn blends by the number of turns that a pair makes over the original context.
func (r *Rope) yarn(i int, power float64) float32 {
	d := float64(r.Dim)
	dim := func(turns float64) float64 {
		return d * math.Log(float64(r.Original)/(turns*2*math.Pi)) / (2 * math.Log(r.Theta))
	}
	low, high := dim(r.BetaFast), dim(r.BetaSlow)
	if r.Truncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, d-1)
	if low == high {
		high += 0.001
	}
	ramp := min(max((float64(i)-low)/(high-low), 0), 1)
	return float32(ramp/(r.Factor*power) + (1-ramp)/power)
}

func (r *Rope) llama3(f float64) float32 {
	n := float64(r.Original)
	wave := 2 * math.Pi / f
	switch {
	case wave < n/r.HighFreq:
		return float32(f)
	case wave > n/r.LowFreq:
		return float32(f / r.Factor)
	}
	smooth := (n/wave - r.LowFreq) / (r.HighFreq - r.LowFreq)
	return float32((1-smooth)*f/r.Factor + smooth*f)
}

// yarnScale is the factor of the attention that the paper recommends.
func yarnScale(factor, mscale float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*mscale*math.Log(factor) + 1
}

// turns are the cosines and sines of positions 0 to n-1.
type turns struct {
	half     int
	cos, sin []float32 // [n, half]
}

func (r *Rope) turns(e *engine, n, variant int) *turns {
	f, attention := r.frequencies(variant), float32(r.Attention)
	if r.Kind == RopeLong && variant > 0 && r.LongAttention > 0 {
		attention = float32(r.LongAttention)
	}
	t := &turns{half: len(f), cos: make([]float32, n*len(f)), sin: make([]float32, n*len(f))}
	e.rows(n, func(p0, p1 int) {
		for p := p0; p < p1; p++ {
			for i, w := range f {
				sin, cos := math.Sincos(float64(float32(p) * w))
				t.cos[p*len(f)+i] = float32(float32(cos) * attention)
				t.sin[p*len(f)+i] = float32(float32(sin) * attention)
			}
		}
	})
	return t
}

// rotate turns the elements x of one head at a position.
func (r *Rope) rotate(x []float32, t *turns, position int) {
	x = x[r.First:]
	cos, sin := t.cos[position*t.half:][:t.half], t.sin[position*t.half:][:t.half]
	if r.Interleaved {
		for i, c := range cos {
			a, b := x[2*i], x[2*i+1]
			x[2*i] = float32(a*c) - float32(b*sin[i])
			x[2*i+1] = float32(b*c) + float32(a*sin[i])
		}
		return
	}
	lo, hi := x[:t.half], x[t.half:][:t.half]
	for i, c := range cos {
		a, b := lo[i], hi[i]
		lo[i] = float32(a*c) - float32(b*sin[i])
		hi[i] = float32(b*c) + float32(a*sin[i])
	}
}

// longScale is LongRoPE's factor of the attention.
func longScale(factor float64, original int) float64 {
	return math.Sqrt(1 + math.Log(factor)/math.Log(float64(original)))
}
