package model

import (
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/weights"
)

// embed fills the residual stream. It reads the rows of the tables that occur.
func (p *Pass) embed() error {
	s, e := &p.model.spec.Embed, p.engine
	l := p.loader
	table, err := l.lookup(s.Tokens, p.model.spec.Vocab, s.Dim)
	if err != nil {
		return err
	}
	x := p.hidden
	if s.TokenProject != nil || s.Project != nil {
		x = make([]float32, p.tokens*s.Dim)
	}
	if err := p.tokenRows(table, x, s.Dim); err != nil {
		return err
	}
	if s.Scale != 1 {
		for i := range x {
			x[i] *= s.Scale
		}
	}
	if s.TokenProject != nil {
		w, err := l.linear(s.TokenProject)
		if err != nil {
			return err
		}
		e.linear(p.hidden, w.Out, x, w.In, p.tokens, w)
		x = p.hidden
	}
	if err := p.addPositions(x); err != nil {
		return err
	}
	if s.Types != "" {
		if err := p.addType(x); err != nil {
			return err
		}
	}
	n, err := l.norm(s.Norm)
	if err != nil {
		return err
	}
	if n != nil {
		n.apply(e, x, n.Dim, x, n.Dim, p.tokens, n.Dim)
	}
	if s.Project != nil {
		w, err := l.linear(s.Project)
		if err != nil {
			return err
		}
		e.linear(p.hidden, w.Out, x, w.In, p.tokens, w)
	}
	return nil
}

// tokenRows copies the row of every token; a row that occurs again is copied from memory.
func (p *Pass) tokenRows(table weights.Tensor, x []float32, dim int) error {
	seen := map[int]int{}
	at := 0
	for _, s := range p.sequences {
		for _, id := range s.IDs {
			dst := x[at*dim:][:dim]
			if first, ok := seen[id]; ok {
				copy(dst, x[first*dim:])
			} else if err := table.ReadF32(dst, int64(id)*int64(dim)); err != nil {
				return err
			}
			if _, ok := seen[id]; !ok {
				seen[id] = at
			}
			at++
		}
	}
	return nil
}

func (p *Pass) addPositions(x []float32) error {
	s := p.model.spec.Embed.Positions
	if s == nil {
		return nil
	}
	dim := len(x) / max(1, p.tokens)
	table, err := p.loader.lookup(s.Table, s.Rows, dim)
	if err != nil {
		return err
	}
	rows := map[int][]float32{}
	at := 0
	for _, q := range p.sequences {
		for _, row := range s.rows(q) {
			v := rows[row]
			if v == nil {
				v = make([]float32, dim)
				if err := table.ReadF32(v, int64(row)*int64(dim)); err != nil {
					return err
				}
				rows[row] = v
			}
			axpy(x[at*dim:][:dim], 1, v)
			at++
		}
	}
	return nil
}

// rows are the rows of the table for the tokens of a sequence.
func (s *Positions) rows(q Sequence) []int {
	out := make([]int, len(q.IDs))
	count := 0
	for i, id := range q.IDs {
		switch s.Rule {
		case ByColumn:
			out[i] = q.Start + i
		case ByToken:
			out[i] = 2 + i
		case AfterPad:
			out[i] = s.Pad
			if id != s.Pad {
				count++
				out[i] = s.Pad + count
			}
		}
	}
	return out
}

func (p *Pass) addType(x []float32) error {
	s := &p.model.spec.Embed
	table, err := p.loader.lookup(s.Types, s.TypeRows, s.Dim)
	if err != nil {
		return err
	}
	v := make([]float32, s.Dim)
	if err := table.ReadF32(v, 0); err != nil {
		return err
	}
	for t := range p.tokens {
		axpy(x[t*s.Dim:][:s.Dim], 1, v)
	}
	return nil
}

// check refuses sequences that the model has no embeddings for.
func (s *Spec) check(sequences []Sequence) error {
	for i, q := range sequences {
		if len(q.IDs) == 0 {
			return fault.Inputf("sequence %d has no tokens", i)
		}
		if q.Start < 0 || q.Width < 0 || q.Width > 0 && q.Width < q.Start+len(q.IDs) {
			return fault.Inputf("sequence %d: %d tokens from column %d on in a row of %d", i, len(q.IDs), q.Start, q.Width)
		}
		for _, id := range q.IDs {
			if id < 0 || id >= s.Vocab {
				return fault.Inputf("sequence %d: token %d; the vocabulary has %d", i, id, s.Vocab)
			}
		}
		if p := s.Embed.Positions; p != nil {
			for _, row := range p.rows(q) {
				if row >= p.Rows {
					return fault.Inputf("sequence %d: %d tokens are too many for a table of %d positions", i, len(q.IDs), p.Rows)
				}
			}
		}
	}
	return nil
}
