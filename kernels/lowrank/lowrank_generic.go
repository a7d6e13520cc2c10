package lowrank

// sum sets acc to the sums over k of l[k]*r[k*stride+at+j], before scaling: the
// definition of the result.
func sum(acc, l, r []float32, at, stride int) {
	n := len(acc)
	if len(l) == 0 {
		clear(acc)
		return
	}
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
