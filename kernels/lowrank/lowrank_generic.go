package lowrank

// tile is how many columns are summed at a time: with the rows of R they stay in a
// first-level cache.
const tile = 256

// rowGeneric is the definition of Row.
func rowGeneric(dst, l, r []float32, stride int, scale float32) {
	for at := 0; at < len(dst); at += tile {
		acc := dst[at:min(at+tile, len(dst))]
		sum(acc, l, r, at, stride)
		for j := range acc {
			acc[j] *= scale
		}
	}
}

// sum sets acc to the sums over k of l[k]*r[k*stride+at+j].
func sum(acc, l, r []float32, at, stride int) {
	n := len(acc)
	first := r[at:][:n]
	for j := range acc {
		acc[j] = l[0] * first[j]
	}
	k := 1
	for ; k+4 <= len(l); k += 4 {
		l0, l1, l2, l3 := l[k], l[k+1], l[k+2], l[k+3]
		r0, r1 := r[k*stride+at:][:n], r[(k+1)*stride+at:][:n]
		r2, r3 := r[(k+2)*stride+at:][:n], r[(k+3)*stride+at:][:n]
		for j, s := range acc {
			s += float32(l0 * r0[j])
			s += float32(l1 * r1[j])
			s += float32(l2 * r2[j])
			s += float32(l3 * r3[j])
			acc[j] = s
		}
	}
	for ; k < len(l); k++ {
		lk, row := l[k], r[k*stride+at:][:n]
		for j := range acc {
			acc[j] += float32(lk * row[j])
		}
	}
}
