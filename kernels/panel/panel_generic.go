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

// fewGeneric is the definition of Few. Four rows of w are summed at a time, as an addition
// waits for the one before.
func fewGeneric(c []float32, cRow int, a, w []float32, wRow, k, m int, mode Mode) {
	for j := 0; j < FewRows; j += 4 {
		w0, w1, w2, w3 := w[j*wRow:][:k], w[(j+1)*wRow:][:k], w[(j+2)*wRow:][:k], w[(j+3)*wRow:][:k]
		for i := range m {
			var s [4]float32
			for t := range k {
				x := a[t*m+i]
				s[0] += float32(x * w0[t])
				s[1] += float32(x * w1[t])
				s[2] += float32(x * w2[t])
				s[3] += float32(x * w3[t])
			}
			out := c[i*cRow+j:][:4]
			for q := range out {
				if mode == Add {
					s[q] += out[q]
				}
				out[q] = s[q]
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
