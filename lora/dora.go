package lora

import "math"

// Scaling is the scaling of DoRA for one matrix: a factor per row, or per column where
// outputs are columns (Conv1D, embeddings).
type Scaling struct {
	cols      int64
	byColumn  bool
	magnitude []float32
	squares   []float64
	factors   []float32
}

// NewScaling prepares the scaling of a [rows, cols] matrix by one magnitude per row, or
// per column.
func NewScaling(magnitude []float32, cols int64, byColumn bool) *Scaling {
	return &Scaling{cols: cols, byColumn: byColumn, magnitude: magnitude, squares: make([]float64, len(magnitude))}
}

// Add takes elements of W + D from flat index first on into the norms. Every element of
// the matrix must be added once, in order.
func (s *Scaling) Add(v []float32, first int64) {
	for len(v) > 0 {
		row, col := first/s.cols, first%s.cols
		n := min(int64(len(v)), s.cols-col)
		if s.byColumn {
			for j, x := range v[:n] {
				s.squares[col+int64(j)] += float64(float64(x) * float64(x))
			}
		} else {
			var sum float64
			for _, x := range v[:n] {
				sum += float64(float64(x) * float64(x))
			}
			s.squares[row] += sum
		}
		v, first = v[n:], first+n
	}
}

// Finish turns the norms into factors. bad is the index of a factor that is not finite, or
// -1: the row or column of a weight that is all zero has no direction to scale.
func (s *Scaling) Finish() (bad int) {
	s.factors = make([]float32, len(s.magnitude))
	bad = -1
	for i, q := range s.squares {
		s.factors[i] = s.magnitude[i] / float32(math.Sqrt(q))
		if f := float64(s.factors[i]); bad < 0 && (math.IsNaN(f) || math.IsInf(f, 0)) {
			bad = i
		}
	}
	return bad
}

func (s *Scaling) apply(v []float32, first int64) {
	for len(v) > 0 {
		row, col := first/s.cols, first%s.cols
		n := min(int64(len(v)), s.cols-col)
		if s.byColumn {
			for j, f := range s.factors[col:][:n] {
				v[j] *= f
			}
		} else {
			f := s.factors[row]
			for j := range v[:n] {
				v[j] *= f
			}
		}
		v, first = v[n:], first+n
	}
}

// Norms makes the norms of a merge with a scaling: read fills its argument with the weight
// from a flat index on.
func (m *Merge) Norms(elems int64, read func(v []float32, first int64) error) (bad int, err error) {
	v, d := make([]float32, 1<<14), make([]float32, piece)
	for first := int64(0); first < elems; first += int64(len(v)) {
		w := v[:min(int64(len(v)), elems-first)]
		if err := read(w, first); err != nil {
			return -1, err
		}
		m.add(w, d, first)
		m.Scaling.Add(w, first)
	}
	return m.Scaling.Finish(), nil
}
