package model

import (
	"github.com/nf4conv/nf4conv/internal/fault"
)

// A Sequence is the tokens of one text. They attend to each other and to nothing else.
type Sequence struct {
	IDs []int
	// Start is how many columns of padding stood before the first token in the row that a
	// padded batch would have. Learned positions count them; rotary attention does not care.
	Start int
	// Width is how many columns that row had; 0: Start + len(IDs). Ropes of type dynamic and
	// longrope choose their frequencies by it.
	Width int
}

func (s Sequence) width() int {
	if s.Width > 0 {
		return s.Width
	}
	return s.Start + len(s.IDs)
}

// Padded takes the rows of a padded batch apart: ids and mask are [rows, columns], mask is
// 1 where there is a token. Padding may stand on either side of a row, not within.
func Padded(ids, mask []int64, rows, columns int) ([]Sequence, error) {
	if rows < 1 || columns < 1 || len(ids) != rows*columns || len(mask) != len(ids) {
		return nil, fault.Inputf("batch: %d ids and a mask of %d for %d rows of %d", len(ids), len(mask), rows, columns)
	}
	out := make([]Sequence, rows)
	for r := range out {
		s, end := &out[r], -1
		s.Width = columns
		for c, m := range mask[r*columns : (r+1)*columns] {
			switch {
			case m != 0 && m != 1:
				return nil, fault.Inputf("batch: row %d: attention mask %d; expected 0 or 1", r, m)
			case m == 0:
				continue
			case len(s.IDs) == 0:
				s.Start = c
			case c != end:
				return nil, fault.Inputf("batch: row %d: padding between tokens, before column %d", r, c)
			}
			s.IDs = append(s.IDs, int(ids[r*columns+c]))
			end = c + 1
		}
	}
	return out, nil
}

// group is whole sequences that go through a layer together.
type group struct {
	sequences []Sequence
	first     int // their first token
	tokens    int
	starts    []int // first token of each within the group, and the end
}

// groupTokens is when a group is full, if RunOptions does not say.
const groupTokens = 1920

// groups are full with so many tokens, 0: groupTokens, or the longest sequence.
func groups(sequences []Sequence, full int) []group {
	if full < 1 {
		full = groupTokens
	}
	var out []group
	first := 0
	for _, s := range sequences {
		if n := len(out); n == 0 || out[n-1].tokens+len(s.IDs) > full {
			out = append(out, group{first: first, starts: []int{0}})
		}
		g := &out[len(out)-1]
		g.sequences = append(g.sequences, s)
		g.tokens += len(s.IDs)
		g.starts = append(g.starts, g.tokens)
		first += len(s.IDs)
	}
	return out
}
