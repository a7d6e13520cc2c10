package tokenizer

import (
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"
)

// item is a part of a character class: a range, Unicode tables or another class.
type item struct {
	lo, hi rune
	tables []*unicode.RangeTable
	neg    bool // of the tables
	sub    *charSet
}

func (it item) has(r rune) bool {
	switch {
	case it.sub != nil:
		return it.sub.has(r)
	case it.tables != nil:
		return unicode.IsOneOf(it.tables, r) != it.neg
	}
	return it.lo <= r && r <= it.hi
}

// charSet is a character class. Membership in the first plane is remembered by pages
// of 256 characters, which are computed when first asked for.
type charSet struct {
	neg   bool
	items []item
	pages [256]atomic.Pointer[[256]bool]
}

func newSet(neg bool, items ...item) *charSet { return &charSet{neg: neg, items: items} }

func (s *charSet) slow(r rune) bool {
	for _, it := range s.items {
		if it.has(r) {
			return !s.neg
		}
	}
	return s.neg
}

func (s *charSet) has(r rune) bool {
	if r > 0xFFFF {
		return s.slow(r)
	}
	page := s.pages[r>>8].Load()
	if page == nil {
		page = new([256]bool)
		for i := range page {
			page[i] = s.slow(r&^0xFF | rune(i))
		}
		s.pages[r>>8].Store(page)
	}
	return page[r&0xFF]
}

// classes are the \x classes of Oniguruma over Unicode.
var classes = map[byte][]*unicode.RangeTable{
	's': {unicode.White_Space},
	'd': {unicode.Nd},
	'w': {unicode.L, unicode.M, unicode.N, unicode.Pc},
}

// controls are the escapes of single characters.
var controls = map[byte]rune{'n': '\n', 'r': '\r', 't': '\t', 'f': '\f', 'v': '\v', 'a': '\a', 'e': 0x1B}

// escape reads a backslash and what belongs to it.
func (p *parser) escape() (item, error) {
	p.pos++
	if !p.more() {
		return item{}, refuse("a backslash at the end")
	}
	c := p.src[p.pos]
	if r, ok := controls[c]; ok {
		p.pos++
		return item{lo: r, hi: r}, nil
	}
	if t, ok := classes[c|0x20]; ok && (c|0x20 == c || 'A' <= c && c <= 'Z') {
		p.pos++
		return item{tables: t, neg: c < 'a'}, nil
	}
	switch {
	case c == 'p' || c == 'P':
		p.pos++
		return p.property(c == 'P')
	case c == 'u':
		return p.hex(1, 4)
	case c == 'x':
		if strings.HasPrefix(p.src[p.pos:], "x{") {
			end := strings.IndexByte(p.src[p.pos:], '}')
			if end < 0 || end > 10 {
				return item{}, refuse(`\x{ without its end`)
			}
			it, err := p.hex(2, end-2)
			p.pos++
			return it, err
		}
		it, err := p.hex(1, 2)
		if err == nil && it.lo >= utf8.RuneSelf {
			return item{}, refuse(`\x%X, a byte of UTF-8`, it.lo)
		}
		return it, err
	case c < utf8.RuneSelf && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'):
		return item{}, refuse(`the escape \%c`, c)
	}
	r := p.rune()
	return item{lo: r, hi: r}, nil
}

// hex reads digits after skip bytes.
func (p *parser) hex(skip, digits int) (item, error) {
	from := p.pos + skip
	if digits < 1 || from+digits > len(p.src) {
		return item{}, refuse("a character by number without its digits")
	}
	v, err := strconv.ParseUint(p.src[from:from+digits], 16, 32)
	if err != nil || !utf8.ValidRune(rune(v)) || v > unicode.MaxRune {
		return item{}, refuse("a character by the number %q", p.src[from:from+digits])
	}
	p.pos = from + digits
	return item{lo: rune(v), hi: rune(v)}, nil
}

func (p *parser) property(neg bool) (item, error) {
	end := strings.IndexByte(p.src[p.pos:], '}')
	if !strings.HasPrefix(p.src[p.pos:], "{") || end < 0 {
		return item{}, refuse(`\p without {...}`)
	}
	name := p.src[p.pos+1 : p.pos+end]
	p.pos += end + 1
	if rest, ok := strings.CutPrefix(name, "^"); ok {
		name, neg = rest, !neg
	}
	if t, ok := unicode.Categories[name]; ok && name[0] != 'C' && name != "LC" {
		return item{tables: []*unicode.RangeTable{t}, neg: neg}, nil
	}
	if t, ok := unicode.Scripts[name]; ok {
		return item{tables: []*unicode.RangeTable{t}, neg: neg}, nil
	}
	return item{}, refuse(`the property \p{%s}`, name)
}

// class reads [...]; a class within it adds its characters.
func (p *parser) class(depth int) (*charSet, error) {
	if depth > maxGroups {
		return nil, refuse("more than %d classes within each other", maxGroups)
	}
	p.pos++
	set := newSet(p.take("^"))
	if p.more() && p.src[p.pos] == ']' {
		return nil, refuse("a class that starts with ]")
	}
	for p.more() {
		if p.take("]") {
			return set, nil
		}
		if strings.HasPrefix(p.src[p.pos:], "&&") {
			return nil, refuse("an intersection of classes")
		}
		if p.src[p.pos] == '[' {
			if strings.HasPrefix(p.src[p.pos:], "[:") {
				return nil, refuse("a POSIX bracket")
			}
			sub, err := p.class(depth + 1)
			if err != nil {
				return nil, err
			}
			set.items = append(set.items, item{sub: sub})
			continue
		}
		lo, err := p.classItem()
		if err != nil {
			return nil, err
		}
		rest := p.src[p.pos:]
		if strings.HasPrefix(rest, "-") && !strings.HasPrefix(rest, "-]") {
			if strings.HasPrefix(rest, "-[") || strings.HasPrefix(rest, "-&&") || lo.tables != nil {
				return nil, refuse("a - between classes")
			}
			p.pos++
			if !p.more() {
				break
			}
			hi, err := p.classItem()
			if err != nil {
				return nil, err
			}
			if hi.tables != nil || hi.lo < lo.lo {
				return nil, refuse("a range that ends before it begins")
			}
			lo.hi = hi.lo
		}
		set.items = append(set.items, lo)
	}
	return nil, refuse("a class without its end")
}

func (p *parser) classItem() (item, error) {
	if p.src[p.pos] == '\\' {
		if strings.HasPrefix(p.src[p.pos:], `\b`) {
			return item{}, refuse(`\b in a class`)
		}
		return p.escape()
	}
	r := p.rune()
	return item{lo: r, hi: r}, nil
}
