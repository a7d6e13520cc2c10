package metric

import "math"

// A Vectors compares rows of hidden states. The zero value is empty.
type Vectors struct {
	Diff2, Base2 float64 // sum |x-y|^2 and sum |x|^2 over all rows
	Cosine       Moments // <x,y> / (|x| |y|) per row; 1 where x = y
	MinCosine    float64 // the smallest
}

// A Row is what is measured of one row.
type Row struct{ Diff2, Base2, Cosine float64 }

// CompareRow measures the row y of the candidate against the row x of the base.
func CompareRow(x, y []float32) Row {
	var r Row
	var y2, xy float64
	for i, v := range x {
		a, b := float64(v), float64(y[i])
		r.Diff2 += float64((a - b) * (a - b))
		r.Base2 += float64(a * a)
		y2 += float64(b * b)
		xy += float64(a * b)
	}
	r.Cosine = xy / (math.Sqrt(r.Base2) * math.Sqrt(y2))
	if r.Diff2 == 0 {
		r.Cosine = 1
	}
	return r
}

// Add takes a row.
func (v *Vectors) Add(r Row) {
	v.Merge(Vectors{r.Diff2, r.Base2, Moments{N: 1, Mean: r.Cosine}, r.Cosine})
}

// Merge takes the rows of another part.
func (v *Vectors) Merge(o Vectors) {
	if o.Cosine.N == 0 {
		return
	}
	if v.Cosine.N == 0 {
		v.MinCosine = o.MinCosine
	}
	v.MinCosine = min(v.MinCosine, o.MinCosine) // NaN wins
	v.Diff2 += o.Diff2
	v.Base2 += o.Base2
	v.Cosine.Merge(o.Cosine)
}

// RelError is sqrt(sum |x-y|^2 / sum |x|^2): 0 where nothing differs, NaN without rows.
func (v *Vectors) RelError() float64 {
	if v.Cosine.N > 0 && v.Diff2 == 0 {
		return 0
	}
	return math.Sqrt(v.Diff2 / v.Base2)
}
