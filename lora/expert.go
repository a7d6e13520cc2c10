package lora

// ExpertColumns takes the columns of B that belong to expert e out of those of a stack of
// experts. PEFT (tuners/lora/layer.py, ParamWrapper) lays A [experts*rank, x] out with the
// expert slowest, rows e*rank to e*rank+rank-1, and B [y, rank*experts] with the expert
// fastest, columns e, e+experts, e+2*experts... The result is [y, rank].
func ExpertColumns(b []float32, experts, rank, y, e int) []float32 {
	out := make([]float32, y*rank)
	for i := range y {
		for k := range rank {
			out[i*rank+k] = b[(i*rank+k)*experts+e]
		}
	}
	return out
}
