package tokenizer

import "unicode/utf8"

// behavior says what becomes of the delimiters.
type behavior int

const (
	removed            behavior = iota
	isolated                    // each is a word
	mergedWithPrevious          // each ends the word before it
	mergedWithNext              // each begins the word after it
	contiguous                  // as isolated, but neighbours are one word
)

func behaviorOf(what, name string) (behavior, error) {
	switch name {
	case "Removed":
		return removed, nil
	case "Isolated":
		return isolated, nil
	case "MergedWithPrevious":
		return mergedWithPrevious, nil
	case "MergedWithNext":
		return mergedWithNext, nil
	case "Contiguous":
		return contiguous, nil
	}
	return 0, refuse("%s: the behavior %q is not known", what, name)
}

// oneOf finds single characters.
type oneOf func(rune) bool

func (f oneOf) find(_ *machine, s string, from int) (int, int, bool, error) {
	for i, r := range s[from:] {
		if f(r) {
			return from + i, from + i + utf8.RuneLen(r), true, nil
		}
	}
	return 0, 0, false, nil
}

// split cuts at what a pattern matches; invert: at what it does not match.
type split struct {
	pattern  finder
	behavior behavior
	invert   bool
}

type part struct {
	from, to  int
	delimiter bool
}

func (p split) cut(m *machine, dst []stretch, s stretch) ([]stretch, error) {
	// The two behaviours of most tokenizers need no list of the parts.
	direct := p.behavior == isolated || p.behavior == removed
	var parts []part
	add := func(from, to int, delimiter bool) {
		switch {
		case from == to:
		case !direct:
			parts = append(parts, part{from, to, delimiter})
		case !delimiter || p.behavior == isolated:
			dst = appendWord(dst, s, from, to)
		}
	}
	at := 0
	for at < len(s.text) {
		start, end, ok, err := p.pattern.find(m, s.text, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		add(at, start, p.invert)
		add(start, end, !p.invert)
		at = end
	}
	add(at, len(s.text), p.invert)
	for _, x := range p.merge(parts) {
		dst = appendWord(dst, s, x.from, x.to)
	}
	return dst, nil
}

// merge joins the parts that become one word. Of several delimiters in a row, only
// the one beside the text joins it.
func (p split) merge(parts []part) []part {
	if len(parts) == 0 {
		return nil
	}
	out := []part{parts[0]}
	for i, x := range parts[1:] {
		before := parts[i].delimiter
		join := false
		switch p.behavior {
		case contiguous:
			join = x.delimiter == before
		case mergedWithPrevious:
			join = x.delimiter && !before
		case mergedWithNext:
			join = before && !x.delimiter
		}
		if join {
			out[len(out)-1].to = x.to
		} else {
			out = append(out, x)
		}
	}
	return out
}
