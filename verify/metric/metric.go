// Package metric has the statistics of a verification: what is measured per token, and
// figures over tokens that can be merged from parts.
//
// # Conventions
//
// Logarithms are natural. x_i are the values of one quantity over n tokens. The standard
// error of a mean is that of independent tokens,
//
//	se = s / sqrt(n),   s^2 = sum (x_i - mean)^2 / (n-1)
//
// and that of a function f of a mean is |f'(mean)| se (delta method). A share is the mean of
// zeros and ones. Quantiles interpolate linearly between order statistics (type 7 of
// Hyndman and Fan 1996, the default of numpy); their standard error is half the distance
// between the quantiles at p -+ sqrt(p(1-p)/n), which is an interval of one standard
// deviation of the binomial count below the quantile. A maximum has none.
//
// Tokens of one text are not independent, so the errors are lower bounds of what another
// text would change; they tell whether two runs over the same text differ.
package metric

import (
	"math"
	"slices"
)

// A Moments is the count, mean and sum of squared deviations of values. The zero value is
// empty. Parts are merged by the formulas of Chan, Golub and LeVeque (1979).
type Moments struct {
	N    int64
	Mean float64
	M2   float64 // sum (x - mean)^2
}

// Add takes one value. NaN and infinities stay visible in the mean.
func (m *Moments) Add(x float64) { m.Merge(Moments{N: 1, Mean: x}) }

// Merge takes the values of another part.
func (m *Moments) Merge(o Moments) {
	if o.N == 0 {
		return
	}
	if m.N == 0 {
		*m = o
		return
	}
	n := float64(m.N + o.N)
	d := o.Mean - m.Mean
	m.Mean += float64(d * float64(o.N) / n)
	m.M2 += o.M2 + float64(d*d*float64(m.N)*float64(o.N)/n)
	m.N += o.N
}

// Estimate is the mean with its standard error; NaN of an empty one, and an error of NaN
// with fewer than two values.
func (m Moments) Estimate() Estimate {
	if m.N == 0 {
		return Estimate{Value: math.NaN(), StdErr: math.NaN()}
	}
	return Estimate{Value: m.Mean, StdErr: math.Sqrt(m.M2 / float64(m.N-1) / float64(m.N))}
}

// An Estimate is a figure and its standard error, NaN where it has none.
type Estimate struct{ Value, StdErr float64 }

// Exp is exp of a mean.
func (e Estimate) Exp() Estimate {
	v := math.Exp(e.Value)
	return Estimate{v, v * e.StdErr}
}

// Sqrt is the square root of a mean that is not negative; of 0 the error is NaN.
func (e Estimate) Sqrt() Estimate {
	v := math.Sqrt(e.Value)
	return Estimate{v, e.StdErr / (2 * v)}
}

// A Distribution is all values of a quantity, 8 bytes each, so that its quantiles are exact
// and do not depend on the order or the parts in which they came. The zero value is empty.
type Distribution struct {
	values []float64
	sorted bool
}

// Add takes values.
func (d *Distribution) Add(x ...float64) {
	d.values = append(d.values, x...)
	d.sorted = false
}

// Merge takes the values of another part.
func (d *Distribution) Merge(o *Distribution) { d.Add(o.values...) }

// Values are all values in ascending order, NaN first; they must not be changed.
func (d *Distribution) Values() []float64 {
	if !d.sorted {
		slices.Sort(d.values)
		d.sorted = true
	}
	return d.values
}

// Quantile is the quantile at 0 <= p <= 1; NaN where there are no values or one is NaN.
func (d *Distribution) Quantile(p float64) Estimate {
	v := d.Values()
	if len(v) == 0 || math.IsNaN(v[0]) {
		return Estimate{math.NaN(), math.NaN()}
	}
	h := math.Sqrt(p * (1 - p) / float64(len(v)))
	return Estimate{at(v, p), (at(v, min(1, p+h)) - at(v, max(0, p-h))) / 2}
}

// Max is the largest value, without an error; NaN as for Quantile.
func (d *Distribution) Max() Estimate {
	e := d.Quantile(1)
	e.StdErr = math.NaN()
	return e
}

// at interpolates in sorted values.
func at(v []float64, p float64) float64 {
	k := p * float64(len(v)-1)
	i := min(int(k), len(v)-1)
	j := min(i+1, len(v)-1)
	return v[i] + float64((v[j]-v[i])*(k-float64(i)))
}
