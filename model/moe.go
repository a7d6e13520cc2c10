package model

import (
	"math"
	"slices"
)

// moe is a MoE with its weights.
type moe struct {
	*MoE
	router     *linear
	correction []float32
	experts    []*mlp
	shared     *mlp
	sharedGate *linear
}

func (l *loader) moe(s *MoE) (*moe, error) {
	if s == nil {
		return nil, nil
	}
	m := &moe{MoE: s}
	var err error
	if m.router, err = l.linear(&s.Router); err != nil {
		return nil, err
	}
	if s.Correction != "" {
		if m.correction, err = l.vector(s.Correction, len(s.Experts)); err != nil {
			return nil, err
		}
	}
	for i := range s.Experts {
		x, err := l.mlp(&s.Experts[i])
		if err != nil {
			return nil, err
		}
		m.experts = append(m.experts, x)
	}
	if m.shared, err = l.mlp(s.Shared); err != nil {
		return nil, err
	}
	if s.SharedGate != nil {
		m.sharedGate, err = l.linear(s.SharedGate)
	}
	return m, err
}

// choice is that an expert was chosen for a row.
type choice struct {
	row    int
	weight float32
}

func (m *moe) forward(e *engine, y []float32, ldy int, x []float32, ldx, n int) {
	experts := len(m.experts)
	scores := e.buffer("router", n*experts)
	e.linear(scores, experts, x, ldx, n, m.router)
	e.rows(n, func(r0, r1 int) { // scores become the weights of all experts
		for r := r0; r < r1; r++ {
			row := scores[r*experts:][:experts]
			weights := make([]float32, experts)
			m.route(row, func(expert int, weight float32) { weights[expert] = weight })
			copy(row, weights)
		}
	})
	chosen := make([][]choice, experts)
	for i, w := range scores {
		if w != 0 {
			chosen[i%experts] = append(chosen[i%experts], choice{i / experts, w})
		}
	}
	dim := m.router.In
	for r := range n {
		clear(y[r*ldy:][:dim])
	}
	for i, list := range chosen { // in this order, so that sums have one
		if len(list) == 0 {
			continue
		}
		in, out := e.buffer("expert.in", len(list)*dim), e.buffer("expert.out", len(list)*dim)
		for k, c := range list {
			copy(in[k*dim:][:dim], x[c.row*ldx:])
		}
		m.experts[i].forward(e, out, dim, in, dim, len(list))
		e.rows(len(list), func(k0, k1 int) {
			for k := k0; k < k1; k++ {
				axpy(y[list[k].row*ldy:][:dim], list[k].weight, out[k*dim:][:dim])
			}
		})
	}
	if m.shared != nil {
		m.addShared(e, y, ldy, x, ldx, n)
	}
}

func (m *moe) addShared(e *engine, y []float32, ldy int, x []float32, ldx, n int) {
	dim := m.router.In
	out := e.buffer("expert.out", n*dim)
	m.shared.forward(e, out, dim, x, ldx, n)
	var gate []float32
	if m.sharedGate != nil {
		gate = e.buffer("shared.gate", n)
		e.linear(gate, 1, x, ldx, n, m.sharedGate)
	}
	e.rows(n, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			w := float32(1)
			if gate != nil {
				w = float32(1 / (1 + math.Exp(-float64(gate[r]))))
			}
			axpy(y[r*ldy:][:dim], w, out[r*dim:][:dim])
		}
	})
}

// axpy adds w*x to y.
func axpy(y []float32, w float32, x []float32) {
	for i, v := range x {
		y[i] += float32(w * v)
	}
}

// route calls do for the experts of one row, whose scores it overwrites.
func (m *moe) route(scores []float32, do func(expert int, weight float32)) {
	switch m.Scoring {
	case SparseMixer:
		m.sparseMixer(scores, do)
		return
	case SoftmaxAll:
		softmax(scores)
	case Sigmoid:
		for i, v := range scores {
			scores[i] = float32(1 / (1 + math.Exp(-float64(v))))
		}
	case SoftmaxTop:
	}
	ranks := slices.Clone(scores)
	for i, c := range m.correction {
		ranks[i] += c
	}
	m.limitGroups(ranks)
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case ranks[a] > ranks[b]:
			return -1
		case ranks[a] < ranks[b]:
			return 1
		}
		return 0
	})
	order = order[:m.TopK]
	weights := make([]float32, len(order))
	sum := float32(0)
	for i, x := range order {
		weights[i] = scores[x]
	}
	if m.Scoring == SoftmaxTop {
		softmax(weights)
	}
	for _, w := range weights {
		sum += w
	}
	for i, x := range order {
		w := weights[i]
		if m.Normalize {
			w /= sum
		}
		do(x, w*m.Scale)
	}
}

// limitGroups takes the experts of all but the best groups out of the choice.
func (m *moe) limitGroups(ranks []float32) {
	if m.Groups < 2 || m.TopGroups >= m.Groups {
		return
	}
	size := len(ranks) / m.Groups
	best := make([]float32, m.Groups)
	for g := range best {
		group := slices.Clone(ranks[g*size : (g+1)*size])
		slices.Sort(group)
		for _, v := range group[size-m.GroupBest:] {
			best[g] += v
		}
	}
	for range m.Groups - m.TopGroups {
		worst := slices.Index(best, slices.Min(best))
		best[worst] = float32(math.Inf(1))
		for i := range size {
			ranks[worst*size+i] = float32(math.Inf(-1))
		}
	}
}

func softmax(x []float32) {
	top := float64(slices.Max(x))
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(float64(v) - top)
	}
	for i, v := range x {
		x[i] = float32(math.Exp(float64(v)-top) / sum)
	}
}
