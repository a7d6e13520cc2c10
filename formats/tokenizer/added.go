package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// addedToken is an entry of "added_tokens".
type addedToken struct {
	ID         *int   `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// matcher finds added tokens of one kind in a text.
type matcher struct {
	trie   *trie
	tokens []addedToken
}

func newMatcher(what string, patterns []string, tokens []addedToken) (*matcher, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	seen := map[string]bool{}
	values := make([]int32, len(patterns))
	for i, p := range patterns {
		if p == "" {
			return nil, refuse("%s: %q becomes empty when normalized", what, tokens[i].Content)
		}
		if seen[p] {
			return nil, refuse("%s: %q appears twice once it is normalized", what, p)
		}
		seen[p] = true
		values[i] = int32(i)
	}
	return &matcher{newTrie(patterns, values), tokens}, nil
}

// section is a stretch, or the id of an added token in its place.
type section struct {
	stretch
	id int // -1 for text
}

// cut appends the sections of s to dst.
func (m *matcher) cut(dst []section, s stretch) []section {
	text := func(from, to int) {
		if from < to {
			dst = append(dst, section{stretch{s.text[from:to], s.first && from == 0}, -1})
		}
	}
	if m == nil {
		text(0, len(s.text))
		return dst
	}
	from := 0
	for at := 0; at < len(s.text); {
		if m.trie.root[s.text[at]] < 0 {
			at++
			continue
		}
		v, n := m.trie.longest(s.text[at:])
		if n == 0 {
			at++
			continue
		}
		t := &m.tokens[v]
		start, stop := at, at+n
		at = stop // also where the match is discarded, and where rstrip goes further
		if t.SingleWord {
			before, _ := utf8.DecodeLastRuneInString(s.text[:start])
			after, _ := utf8.DecodeRuneInString(s.text[stop:])
			if start > 0 && isWord(before) || stop < len(s.text) && isWord(after) {
				continue
			}
		}
		if t.LStrip {
			start = max(from, len(strings.TrimRightFunc(s.text[:start], isSpace)))
		}
		if t.RStrip {
			stop = len(s.text) - len(strings.TrimLeftFunc(s.text[stop:], isSpace))
		}
		text(from, start)
		dst = append(dst, section{id: *t.ID})
		from = stop
	}
	text(from, len(s.text))
	return dst
}
