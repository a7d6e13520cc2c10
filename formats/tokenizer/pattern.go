package tokenizer

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A pattern is compiled to a program for the machine of match.go.
type pattern struct {
	prog []inst
}

type opcode uint8

const (
	opSet       opcode = iota // one character of set
	opLoop                    // set, min to max times; what it may give back depends on mode
	opSplit                   // go on at x; if that fails, at y
	opJump                    // go on at x
	opLook                    // lookahead: the sub-program at pc+1 up to x must match (neg: must not)
	opBehind                  // the character before is one of set (neg: is not, or there is none)
	opBegin                   // \A
	opEnd                     // \z
	opLineBegin               // ^
	opLineEnd                 // $
	opMatch
)

type loopMode uint8

const (
	greedy loopMode = iota
	lazy
	possessive
)

type inst struct {
	op       opcode
	set      *charSet
	min, max int // max < 0: without bound
	mode     loopMode
	neg      bool
	x, y     int
}

const (
	maxPattern = 4096  // bytes of a pattern
	maxProgram = 20000 // instructions of a program
	maxGroups  = 50    // groups within each other
)

// parsePattern compiles a regular expression in Oniguruma's Ruby syntax. Known are
// literals, escapes, classes (nested ones are united), \s \d \w \p{...}, ., groups,
// alternatives, greedy, lazy and possessive quantifiers, lookahead, lookbehind of one
// character, ^ $ \A \z, and (?i:...) around literals. The rest is refused, and so is
// a pattern that matches the empty string.
func parsePattern(s string) (*pattern, error) {
	if len(s) > maxPattern {
		return nil, refuse("%d bytes, at most %d are taken", len(s), maxPattern)
	}
	if !utf8.ValidString(s) {
		return nil, refuse("not valid UTF-8")
	}
	p := &parser{src: s}
	n, err := p.alternatives(false)
	if err != nil {
		return nil, err
	}
	if p.pos < len(s) {
		return nil, refuse("unmatched %q", s[p.pos:p.pos+1])
	}
	if n.nullable {
		return nil, refuse("it matches the empty string")
	}
	prog := append(n.code, inst{op: opMatch})
	if len(prog) > maxProgram {
		return nil, refuse("more than %d instructions", maxProgram)
	}
	return &pattern{prog}, nil
}

// node is a compiled part; jumps in code are relative to the instruction.
type node struct {
	code     []inst
	nullable bool
	single   *charSet // exactly one character of a set, and nothing else
}

type parser struct {
	src   string
	pos   int
	depth int
}

func (p *parser) more() bool { return p.pos < len(p.src) }

func (p *parser) take(s string) bool {
	if strings.HasPrefix(p.src[p.pos:], s) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *parser) rune() rune {
	r, n := utf8.DecodeRuneInString(p.src[p.pos:])
	p.pos += n
	return r
}

func (p *parser) alternatives(fold bool) (node, error) {
	if p.depth++; p.depth > maxGroups {
		return node{}, refuse("more than %d groups within each other", maxGroups)
	}
	defer func() { p.depth-- }()
	out, err := p.concatenation(fold)
	if err != nil {
		return node{}, err
	}
	branches := []node{out}
	for p.take("|") {
		n, err := p.concatenation(fold)
		if err != nil {
			return node{}, err
		}
		branches = append(branches, n)
	}
	for i := len(branches) - 2; i >= 0; i-- {
		a, b := branches[i], branches[i+1]
		code := make([]inst, 0, len(a.code)+len(b.code)+2)
		code = append(code, inst{op: opSplit, x: 1, y: len(a.code) + 2})
		code = append(code, a.code...)
		code = append(code, inst{op: opJump, x: len(b.code) + 1})
		code = append(code, b.code...)
		if len(code) > maxProgram {
			return node{}, refuse("more than %d instructions", maxProgram)
		}
		branches[i] = node{code: code, nullable: a.nullable || b.nullable}
	}
	return branches[0], nil
}

func (p *parser) concatenation(fold bool) (node, error) {
	out := node{nullable: true}
	parts := 0
	var folded rune // the literal before, within (?i:...)
	for p.more() && p.src[p.pos] != '|' && p.src[p.pos] != ')' {
		n, lit, err := p.atom(fold)
		if err != nil {
			return node{}, err
		}
		if fold {
			// Oniguruma folds these pairs with one character, such as U+00DF.
			switch strings.ToLower(string([]rune{folded, lit})) {
			case "ss", "ff", "fi", "fl", "st":
				return node{}, refuse("(?i:...) around a pair that folds to one character")
			}
			folded = lit
		}
		if n, err = p.quantified(n); err != nil {
			return node{}, err
		}
		if len(out.code)+len(n.code) > maxProgram {
			return node{}, refuse("more than %d instructions", maxProgram)
		}
		out.code = append(out.code, n.code...)
		out.nullable = out.nullable && n.nullable
		out.single = n.single
		parts++
	}
	if parts != 1 {
		out.single = nil
	}
	return out, nil
}

func one(set *charSet) node {
	return node{code: []inst{{op: opSet, set: set}}, single: set}
}

// atom reads one unit; lit is its character where it is a literal.
func (p *parser) atom(fold bool) (n node, lit rune, err error) {
	zero := func(i inst) (node, rune, error) {
		if fold {
			return node{}, 0, refuse("(?i:...) around more than literals")
		}
		return node{code: []inst{i}, nullable: true}, 0, nil
	}
	switch c := p.src[p.pos]; c {
	case '(':
		n, err := p.group(fold)
		return n, 0, err
	case '[':
		if fold {
			return node{}, 0, refuse("(?i:...) around a class")
		}
		set, err := p.class(0)
		return one(set), 0, err
	case '.':
		if fold {
			return node{}, 0, refuse("(?i:...) around more than literals")
		}
		p.pos++
		return one(newSet(true, item{lo: '\n', hi: '\n'})), 0, nil
	case '^':
		p.pos++
		return zero(inst{op: opLineBegin})
	case '$':
		p.pos++
		return zero(inst{op: opLineEnd})
	case '*', '+', '?':
		return node{}, 0, refuse("nothing to repeat before %q", c)
	case '\\':
		if p.take(`\A`) {
			return zero(inst{op: opBegin})
		}
		if p.take(`\z`) {
			return zero(inst{op: opEnd})
		}
		it, err := p.escape()
		if err != nil {
			return node{}, 0, err
		}
		if it.tables == nil {
			return literalSet(it.lo, fold)
		}
		if fold {
			return node{}, 0, refuse("(?i:...) around a class")
		}
		return one(newSet(false, it)), 0, nil
	}
	return literalSet(p.rune(), fold)
}

func literalSet(r rune, fold bool) (node, rune, error) {
	items := []item{{lo: r, hi: r}}
	if fold {
		if r >= utf8.RuneSelf {
			return node{}, 0, refuse("(?i:...) around %q", r)
		}
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			items = append(items, item{lo: f, hi: f})
		}
	}
	return one(newSet(false, items...)), r, nil
}

func (p *parser) group(fold bool) (node, error) {
	p.pos++
	look, behind, neg := false, false, false
	switch {
	case p.take("?:"):
	case p.take("?i:"):
		fold = true
	case p.take("?="):
		look = true
	case p.take("?!"):
		look, neg = true, true
	case p.take("?<="):
		behind = true
	case p.take("?<!"):
		behind, neg = true, true
	case p.take("?"):
		return node{}, refuse("a group that starts with %q", "(?"+p.src[p.pos:min(p.pos+1, len(p.src))])
	}
	n, err := p.alternatives(fold)
	if err != nil {
		return node{}, err
	}
	if !p.take(")") {
		return node{}, refuse("a group without its end")
	}
	if (look || behind) && fold {
		return node{}, refuse("(?i:...) around more than literals")
	}
	if look {
		code := append([]inst{{op: opLook, neg: neg, x: len(n.code) + 2}}, n.code...)
		return node{code: append(code, inst{op: opMatch}), nullable: true}, nil
	}
	if behind {
		if n.single == nil {
			return node{}, refuse("lookbehind of more than one character")
		}
		return node{code: []inst{{op: opBehind, set: n.single, neg: neg}}, nullable: true}, nil
	}
	return n, nil
}

// quantified applies the quantifiers that follow.
func (p *parser) quantified(n node) (node, error) {
	for p.more() {
		lo, hi, interval, ok := p.quantifier()
		if !ok {
			break
		}
		mode := greedy
		switch {
		case p.take("?"):
			mode = lazy
			if interval && lo == hi {
				return node{}, refuse("{n}?, which Ruby reads as (?:...{n})?")
			}
		case !interval && p.take("+"):
			mode = possessive // after an interval, + repeats it
		}
		var err error
		if n, err = repeat(n, lo, hi, mode); err != nil {
			return node{}, err
		}
	}
	return n, nil
}

func (p *parser) quantifier() (lo, hi int, interval, ok bool) {
	switch {
	case p.take("*"):
		return 0, -1, false, true
	case p.take("+"):
		return 1, -1, false, true
	case p.take("?"):
		return 0, 1, false, true
	}
	if p.src[p.pos] != '{' {
		return 0, 0, false, false
	}
	end := strings.IndexByte(p.src[p.pos:], '}')
	if end < 0 {
		return 0, 0, false, false
	}
	a, b, two := strings.Cut(p.src[p.pos+1:p.pos+end], ",")
	lo, hi = 0, -1
	var err error
	if a != "" {
		if lo, err = strconv.Atoi(a); err != nil || lo < 0 {
			return 0, 0, false, false // a literal brace
		}
	}
	switch {
	case b != "":
		if hi, err = strconv.Atoi(b); err != nil || hi < 0 {
			return 0, 0, false, false
		}
	case a == "":
		return 0, 0, false, false
	case !two:
		hi = lo
	}
	p.pos += end + 1
	return lo, hi, true, true
}

const maxRepeat = 1000

func repeat(n node, lo, hi int, mode loopMode) (node, error) {
	if lo > maxRepeat || hi > maxRepeat || (hi >= 0 && lo > hi) {
		return node{}, refuse("a repetition from %d to %d", lo, hi)
	}
	if n.single != nil {
		return node{code: []inst{{op: opLoop, set: n.single, min: lo, max: hi, mode: mode}}, nullable: lo == 0}, nil
	}
	if n.nullable {
		return node{}, refuse("a repetition of what matches the empty string")
	}
	if mode != greedy {
		return node{}, refuse("a lazy or possessive repetition of a group")
	}
	if copies := max(lo, hi) + 1; copies*(len(n.code)+2) > maxProgram {
		return node{}, refuse("more than %d instructions", maxProgram)
	}
	var code []inst
	for range lo {
		code = append(code, n.code...)
	}
	size := len(n.code)
	if hi < 0 {
		code = append(code, inst{op: opSplit, x: 1, y: size + 2})
		code = append(code, n.code...)
		code = append(code, inst{op: opJump, x: -size - 1})
	} else {
		for i := lo; i < hi; i++ {
			code = append(code, inst{op: opSplit, x: 1, y: (hi - i) * (size + 1)})
			code = append(code, n.code...)
		}
	}
	return node{code: code, nullable: lo == 0}, nil
}
