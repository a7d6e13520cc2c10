package compare

import (
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/weights"
)

// transposed shows a matrix with its dimensions swapped.
type transposed struct{ weights.Tensor }

func transpose(t weights.Tensor) weights.Tensor { return transposed{t} }

func (t transposed) Shape() []int64 {
	s := t.Tensor.Shape()
	return []int64{s[1], s[0]}
}

func (t transposed) Sources() []hf.Tensor { return t.Tensor.Sources() }

// ReadF32 gathers a run of the transpose: a strip of a few columns of every row.
func (t transposed) ReadF32(dst []float32, off int64) error {
	if len(dst) == 0 {
		return nil
	}
	s := t.Tensor.Shape()
	rows, cols := s[0], s[1]
	last := off + int64(len(dst)) - 1
	c0, c1 := off/rows, last/rows+1
	strip := make([]float32, c1-c0)
	for r := range rows {
		if err := t.Tensor.ReadF32(strip, r*cols+c0); err != nil {
			return err
		}
		for c := c0; c < c1; c++ {
			if at := c*rows + r; at >= off && at <= last {
				dst[at-off] = strip[c-c0]
			}
		}
	}
	return nil
}
