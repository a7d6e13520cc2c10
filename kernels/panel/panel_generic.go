package panel

// mulGeneric is the definition of Mul, one row of c after the other.
func mulGeneric(c, b, a []float32, aRow, aStep, rows, k, w int, mode Mode, scale []float32) {
	var sums [MaxVecs * 8]float32
	sum := sums[:w]
	for i := range rows {
		clear(sum)
		for t := range k {
			x := a[i*aRow+t*aStep]
			y := b[t*w : t*w+w]
			for j := range sum {
				sum[j] += float32(x * y[j])
			}
		}
		out := c[i*w : i*w+w]
		switch mode {
		case Store:
			copy(out, sum)
		case Add:
			for j, s := range sum {
				out[j] += s
			}
		case Rescale:
			for j, s := range sum {
				out[j] = float32(out[j]*scale[j]) + s
			}
		}
	}
}

// transposeGeneric turns the rows from r0 to r1 and columns from c0 to c1 of src.
func transposeGeneric(dst []float32, ldd int, src []float32, lds, r0, r1, c0, c1 int) {
	if c0 == c1 {
		return
	}
	for i := r0; i < r1; i++ {
		for j, x := range src[i*lds+c0 : i*lds+c1] {
			dst[(c0+j)*ldd+i] = x
		}
	}
}
