package tokenizer

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// bpe merges the characters of a word by pairs, of all pairs that stand side by side
// always the one of lowest rank, the leftmost of equals.
type bpe struct {
	vocabulary
	merges       map[uint64]merge
	unk          int // -1: characters that are not in the vocabulary vanish
	prefix       string
	suffix       string
	fuse         bool
	bytes        *[256]int // nil without byte_fallback
	ignoreMerges bool
}

type merge struct{ rank, id int32 }

func pair(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// mergeList reads merges as pairs ["a", "b"] and, of older files, as strings "a b".
type mergeList [][2]string

// UnmarshalJSON takes either form, but not both in one list.
func (l *mergeList) UnmarshalJSON(raw []byte) error {
	if rest := bytes.TrimLeft(raw[1:], " \t\r\n"); raw[0] == '[' && len(rest) > 0 && rest[0] == '"' {
		var lines []string
		if err := json.Unmarshal(raw, &lines); err != nil {
			return err
		}
		for _, line := range lines {
			if strings.HasPrefix(line, "#version") {
				continue
			}
			a, b, ok := strings.Cut(line, " ")
			if !ok || strings.Contains(b, " ") {
				return refuse("the merge %q is not two tokens with a space between", line)
			}
			*l = append(*l, [2]string{a, b})
		}
		return nil
	}
	var pairs [][]string
	if err := json.Unmarshal(raw, &pairs); err != nil {
		return err
	}
	*l = make(mergeList, len(pairs))
	for i, p := range pairs {
		if len(p) != 2 {
			return refuse("the merge %q is not two tokens", p)
		}
		(*l)[i] = [2]string{p[0], p[1]}
	}
	return nil
}

func buildBPE(what string, raw json.RawMessage) (model, error) {
	var c struct {
		Type     string     `json:"type"`
		Dropout  *float64   `json:"dropout"`
		Unk      *string    `json:"unk_token"`
		Prefix   *string    `json:"continuing_subword_prefix"`
		Suffix   *string    `json:"end_of_word_suffix"`
		Fuse     bool       `json:"fuse_unk"`
		Fallback bool       `json:"byte_fallback"`
		Ignore   bool       `json:"ignore_merges"`
		Vocab    vocabulary `json:"vocab"`
		Merges   *mergeList `json:"merges"`
	}
	if err := decode(what, raw, &c); err != nil {
		return nil, err
	}
	if err := c.Vocab.check(what); err != nil {
		return nil, err
	}
	if c.Merges == nil {
		return nil, refuse("%s: no merges", what)
	}
	if c.Dropout != nil && *c.Dropout != 0 {
		return nil, refuse("%s: dropout of %v draws ids at random", what, *c.Dropout)
	}
	m := &bpe{vocabulary: c.Vocab, merges: make(map[uint64]merge, len(*c.Merges)), unk: -1, fuse: c.Fuse, ignoreMerges: c.Ignore}
	if c.Prefix != nil {
		m.prefix = *c.Prefix
	}
	if c.Suffix != nil {
		m.suffix = *c.Suffix
	}
	if c.Unk != nil {
		id, ok := c.Vocab[*c.Unk]
		if !ok {
			return nil, refuse("%s: unk_token %q is not in the vocabulary", what, *c.Unk)
		}
		m.unk = int(id)
	}
	if c.Fallback {
		ids := byteTokens(c.Vocab.id)
		m.bytes = &ids
	}
	for rank, p := range *c.Merges {
		a, okA := c.Vocab[p[0]]
		b, okB := c.Vocab[p[1]]
		if !okA || !okB || len(p[1]) < len(m.prefix) {
			return nil, refuse("%s: the merge of %q and %q: not both are in the vocabulary", what, p[0], p[1])
		}
		id, ok := c.Vocab[p[0]+p[1][len(m.prefix):]]
		if !ok {
			return nil, refuse("%s: what %q and %q merge to is not in the vocabulary", what, p[0], p[1])
		}
		m.merges[pair(a, b)] = merge{int32(rank), id}
	}
	return m, nil
}

// symbol is a token of a word; a merge unlinks the right one of the two.
type symbol struct {
	id         int32
	prev, next int32
	gone       bool
}

// candidate is a pair that may be merged: of the symbol at pos and the next.
type candidate struct {
	rank, pos, id int32
}

func (c candidate) before(d candidate) bool {
	return c.rank < d.rank || c.rank == d.rank && c.pos < d.pos
}

func (m *bpe) encode(dst []int, word string) ([]int, error) {
	if m.ignoreMerges {
		if id, ok := m.vocabulary[word]; ok {
			return append(dst, int(id)), nil
		}
	}
	ids := m.characters(word)
	symbols := make([]symbol, len(ids))
	var queue heap
	for i, id := range ids {
		symbols[i] = symbol{id: id, prev: int32(i) - 1, next: int32(i) + 1}
		if i > 0 {
			m.offer(&queue, symbols, int32(i)-1, int32(i))
		}
	}
	for len(queue) > 0 {
		c := queue.pop()
		left := &symbols[c.pos]
		if left.gone || int(left.next) >= len(symbols) {
			continue
		}
		right := &symbols[left.next]
		// The entry may be of a pair that another merge has taken apart.
		if now, ok := m.merges[pair(left.id, right.id)]; !ok || now.id != c.id {
			continue
		}
		left.id, left.next, right.gone = c.id, right.next, true
		if int(left.next) < len(symbols) {
			symbols[left.next].prev = c.pos
			m.offer(&queue, symbols, c.pos, left.next)
		}
		if left.prev >= 0 {
			m.offer(&queue, symbols, left.prev, c.pos)
		}
	}
	for _, s := range symbols {
		if !s.gone {
			dst = append(dst, int(s.id))
		}
	}
	return dst, nil
}

func (m *bpe) offer(queue *heap, symbols []symbol, a, b int32) {
	if found, ok := m.merges[pair(symbols[a].id, symbols[b].id)]; ok {
		queue.push(candidate{found.rank, a, found.id})
	}
}

// characters returns the ids that merging starts from.
func (m *bpe) characters(word string) []int32 {
	out := make([]int32, 0, len(word))
	waiting := false // an unknown token that later ones may still join
	var spell []int
	for i := 0; i < len(word); {
		_, n := utf8.DecodeRuneInString(word[i:])
		s := word[i : i+n]
		if i > 0 && m.prefix != "" {
			s = m.prefix + s
		}
		if i += n; i == len(word) && m.suffix != "" {
			s += m.suffix
		}
		if id, ok := m.vocabulary[s]; ok {
			if waiting {
				out = append(out, int32(m.unk))
				waiting = false
			}
			out = append(out, id)
			continue
		}
		if m.bytes != nil {
			var ok bool
			if spell, ok = spelled(spell[:0], s, m.bytes); ok {
				// tokenizers puts these before an unknown token that waits.
				for _, id := range spell {
					out = append(out, int32(id))
				}
				continue
			}
		}
		if m.unk >= 0 {
			if waiting && !m.fuse {
				out = append(out, int32(m.unk))
			}
			waiting = true
		}
	}
	if waiting {
		out = append(out, int32(m.unk))
	}
	return out
}

// heap is a binary heap of candidates, the first on top.
type heap []candidate

func (h *heap) push(c candidate) {
	q := append(*h, c)
	i := len(q) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !c.before(q[up]) {
			break
		}
		q[i] = q[up]
		i = up
	}
	q[i] = c
	*h = q
}

func (h *heap) pop() candidate {
	q := *h
	top, last := q[0], q[len(q)-1]
	q = q[:len(q)-1]
	i := 0
	for {
		down := 2*i + 1
		if down >= len(q) {
			break
		}
		if down+1 < len(q) && q[down+1].before(q[down]) {
			down++
		}
		if !q[down].before(last) {
			break
		}
		q[i] = q[down]
		i = down
	}
	if len(q) > 0 {
		q[i] = last
	}
	*h = q
	return top
}
