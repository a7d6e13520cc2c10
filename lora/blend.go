package lora

import "math"

// Prune says which elements of a task take part in a combination.
type Prune int

// The ways of pruning.
const (
	PruneNone      Prune = iota
	PruneMagnitude       // those of largest magnitude
	PruneRandom          // at random, each divided by the density (DARE, arXiv 2311.03099)
)

// Elect says which sign wins where tasks disagree (TIES, arXiv 2306.01708).
type Elect int

// The ways of electing a sign. Zero is positive.
const (
	ElectNone      Elect = iota // tasks are added up
	ElectTotal                  // that of the sum of the pruned tasks, without their weights
	ElectFrequency              // that of the sum of their signs
)

// Part is what a mask of DARE is for.
type Part string

// The parts of a layer.
const (
	PartA     Part = "A"
	PartB     Part = "B"
	PartDelta Part = "delta"
	PartBias  Part = "bias"
)

// Mask tells whether DARE keeps element j.
type Mask func(j int) bool

// Blend combines tensors element by element, in float32 and in this order, as PEFT
// (utils/merge_utils.py) does:
//
//	p = x of a task, pruned; int(density * elements) are kept, of equal magnitudes the first; or p = x / density
//	ElectNone: ((w1 p1) + (w2 p2)) + ...
//	else:      the same sum over the tasks whose p has the elected sign, divided by their number
type Blend struct {
	Prune   Prune
	Elect   Elect
	Density float64 // in (0, 1]; 1 prunes nothing
	// Mask makes the mask of PruneRandom for pair i; see [Keep].
	Mask func(i int, part Part) Mask
}

// Factors blends the A and the B of all pairs, which must have one rank, by themselves.
// Weights are split evenly: sqrt|w s| on either side, and the sign on A. The product of the
// results is not the blend of the products: terms between A of one adapter and B of
// another stand in it.
func (b *Blend) Factors(out, in int, pairs []Pair) *Factors {
	f := &Factors{Rows: out, Cols: in, Rank: pairs[0].Rank, L: make([]float32, len(pairs[0].B)), R: make([]float32, len(pairs[0].A))}
	var as, bs [][]float32
	var wa, wb []float32
	for i := range pairs {
		c := pairs[i].Scale * pairs[i].Weight
		w := math.Sqrt(math.Abs(c))
		as, bs = append(as, pairs[i].A), append(bs, pairs[i].B)
		wa, wb = append(wa, float32(math.Copysign(w, c))), append(wb, float32(w))
	}
	b.Apply(f.R, as, wa, PartA)
	b.Apply(f.L, bs, wb, PartB)
	return f
}

// Apply blends whole tensors of one length into dst, which may be one of them.
func (b *Blend) Apply(dst []float32, tasks [][]float32, weights []float32, part Part) {
	ps := make([]pruner, len(tasks))
	for i, x := range tasks {
		ps[i] = b.pruner(i, x, part)
	}
	b.blend(dst, tasks, weights, ps)
}

// Delta blends the deltas s B A of all pairs into dst [out, in]. It takes as much memory
// as dst and a few rows: each delta is computed twice, for its pruning and for the sum.
func (b *Blend) Delta(dst []float32, out, in int, pairs []Pair) {
	products := make([]Product, len(pairs))
	ps := make([]pruner, len(pairs))
	weights := make([]float32, len(pairs))
	for i := range pairs {
		p := &pairs[i]
		products[i], weights[i] = NewProduct(out, in, p.Rank, p.B, p.A, float32(p.Scale)), float32(p.Weight)
		if b.Prune == PruneMagnitude {
			products[i].Fill(dst, 0)
		}
		ps[i] = b.pruner(i, dst, PartDelta)
	}
	rows := make([][]float32, len(pairs))
	for i := range rows {
		rows[i] = make([]float32, in)
	}
	for at := 0; at < len(dst); at += in {
		for i := range products {
			products[i].Fill(rows[i], at)
		}
		b.blend(dst[at:][:in], rows, weights, ps)
	}
}

// pruner goes through the elements of a task in order.
type pruner struct {
	kind    Prune
	limit   uint32 // bits of the smallest magnitude that is kept
	equal   int    // how many of that magnitude are kept
	mask    Mask
	density float32
	at      int
}

func (b *Blend) pruner(i int, x []float32, part Part) pruner {
	if b.Density >= 1 || b.Prune == PruneNone {
		return pruner{}
	}
	p := pruner{kind: b.Prune, density: float32(b.Density)}
	if b.Prune == PruneRandom {
		p.mask = b.Mask(i, part)
		return p
	}
	p.limit, p.equal = largest(x, int(b.Density*float64(len(x))))
	return p
}

func (p *pruner) next(x float32) float32 {
	switch p.kind {
	case PruneMagnitude:
		switch m := math.Float32bits(x) &^ (1 << 31); {
		case m > p.limit:
			return x
		case m == p.limit && p.equal > 0:
			p.equal--
			return x
		}
		return 0
	case PruneRandom:
		keep := p.mask(p.at)
		p.at++
		if !keep {
			return 0
		}
		return x / p.density
	}
	return x
}

// blend combines the next elements of all tasks.
func (b *Blend) blend(dst []float32, tasks [][]float32, weights []float32, ps []pruner) {
	v := make([]float32, len(tasks))
	for j := range dst {
		var total float32
		for i := range tasks {
			v[i] = ps[i].next(tasks[i][j])
			if b.Elect == ElectFrequency {
				total += sign(v[i])
			} else {
				total += v[i]
			}
		}
		if b.Elect == ElectNone {
			var sum float32
			for i, w := range weights {
				sum += float32(w * v[i])
			}
			dst[j] = sum
			continue
		}
		majority := float32(1)
		if total < 0 {
			majority = -1
		}
		var sum, n float32
		for i, w := range weights {
			if sign(v[i]) == majority {
				sum += float32(w * v[i])
				n++
			}
		}
		dst[j] = sum / max(n, 1)
	}
}

func sign(x float32) float32 {
	switch {
	case x > 0:
		return 1
	case x < 0:
		return -1
	}
	return 0
}

// largest finds the k largest magnitudes: those above limit, and so many of those equal to
// it. Bits of magnitudes are ordered as the magnitudes are, so that counting the upper and
// then the lower halves finds the limit without sorting.
func largest(x []float32, k int) (limit uint32, equal int) {
	if k <= 0 {
		return math.MaxUint32, 0
	}
	count := make([]int, 1<<16)
	pick := func() (half uint32) {
		for i := len(count) - 1; i > 0; i-- {
			if k <= count[i] {
				return uint32(i)
			}
			k -= count[i]
		}
		return 0
	}
	for _, v := range x {
		count[math.Float32bits(v)&^(1<<31)>>16]++
	}
	upper := pick()
	clear(count)
	for _, v := range x {
		if m := math.Float32bits(v) &^ (1 << 31); m>>16 == upper {
			count[m&0xffff]++
		}
	}
	return upper<<16 | pick(), k
}

// Keep is the mask of DARE for a key: element j is kept when the upper 53 bits of
//
//	SplitMix64 (Steele, Lea and Flood 2014) at state key + (j+1) * 0x9e3779b97f4a7c15
//
// are below density * 2^53. Every element has a number of its own, so that the order in
// which they are asked for does not matter.
func Keep(key uint64, density float64) Mask {
	limit := uint64(density * (1 << 53))
	return func(j int) bool { return splitMix(key+uint64(j+1)*0x9e3779b97f4a7c15)>>11 < limit }
}

// MaskKey is the key of a mask: SplitMix64's output function of seed + FNV-1a (64 bits) of name.
func MaskKey(seed uint64, name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return splitMix(seed + h)
}

func splitMix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
