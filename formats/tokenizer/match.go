package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// finder finds the stretches of a text that match, leftmost first, without overlap.
type finder interface {
	// find returns the next match at or after from, or ok false.
	find(m *machine, s string, from int) (start, end int, ok bool, err error)
}

type literal string

func (l literal) find(_ *machine, s string, from int) (int, int, bool, error) {
	i := strings.Index(s[from:], string(l))
	if i < 0 {
		return 0, 0, false, nil
	}
	return from + i, from + i + len(l), true, nil
}

// frame is a choice to come back to: at pc with the text at pos. While pos is above
// low, the loop before pc may still give back one character at a time (by: -1) or
// take one more (lazy; low then is how many it may take).
type frame struct {
	pc, pos int
	low     int
	set     *charSet // lazy loops only
	kind    frameKind
}

type frameKind uint8

const (
	choice frameKind = iota
	giveBack
	takeMore
)

// machine holds the stack of the matcher and counts its steps.
type machine struct {
	stack []frame
	steps int // left
}

// maxStack bounds the choices remembered at one time.
const maxStack = 1 << 22

func (p *pattern) find(m *machine, s string, from int) (int, int, bool, error) {
	for at := from; at < len(s); {
		end, err := m.run(p.prog, 0, s, at)
		if err != nil {
			return 0, 0, false, err
		}
		if end >= 0 {
			return at, end, true, nil
		}
		_, n := utf8.DecodeRuneInString(s[at:])
		at += n
	}
	return 0, 0, false, nil
}

// next decodes the character at pos; n is 0 at the end.
func next(s string, pos int) (rune, int) {
	if pos < len(s) && s[pos] < utf8.RuneSelf {
		return rune(s[pos]), 1
	}
	r, n := utf8.DecodeRuneInString(s[pos:])
	return r, n
}

// run matches from pc with the text at pos and returns where the match ends, or -1.
// It is entered again for each lookahead, never for repetitions.
func (m *machine) run(prog []inst, pc int, s string, pos int) (int, error) {
	base := len(m.stack)
	defer func() { m.stack = m.stack[:base] }()
	for {
		if m.steps--; m.steps < 0 || len(m.stack) > maxStack {
			return 0, refuse("a regular expression of the tokenizer takes too many steps on this text")
		}
		ok := true
		switch in := &prog[pc]; in.op {
		case opMatch:
			return pos, nil
		case opSet:
			r, n := next(s, pos)
			if ok = n > 0 && in.set.has(r); ok {
				pos += n
				pc++
			}
		case opLoop:
			ok, pc, pos = m.loop(in, pc, s, pos)
		case opSplit:
			m.stack = append(m.stack, frame{pc: pc + in.y, pos: pos})
			pc += in.x
		case opJump:
			pc += in.x
		case opLook:
			end, err := m.run(prog, pc+1, s, pos)
			if err != nil {
				return 0, err
			}
			if ok = (end >= 0) != in.neg; ok {
				pc += in.x
			}
		case opBehind:
			r, n := utf8.DecodeLastRuneInString(s[:pos])
			if ok = (n > 0 && in.set.has(r)) != in.neg; ok {
				pc++
			}
		case opBegin:
			ok = pos == 0
			pc++
		case opEnd:
			ok = pos == len(s)
			pc++
		case opLineBegin:
			ok = pos == 0 || pos < len(s) && s[pos-1] == '\n'
			pc++
		case opLineEnd:
			ok = pos == len(s) || s[pos] == '\n'
			pc++
		}
		if ok {
			continue
		}
		if pc, pos, ok = m.backtrack(base, s); !ok {
			return -1, nil
		}
	}
}

func (m *machine) loop(in *inst, pc int, s string, pos int) (bool, int, int) {
	count := 0
	low := pos
	for in.max < 0 || count < in.max {
		if in.mode == lazy && count == in.min {
			break
		}
		r, n := next(s, pos)
		if n == 0 || !in.set.has(r) {
			break
		}
		pos += n
		if count++; count == in.min {
			low = pos
		}
	}
	m.steps -= count / 8
	if count < in.min {
		return false, pc, pos
	}
	switch {
	case in.mode == greedy && pos > low:
		m.stack = append(m.stack, frame{kind: giveBack, pc: pc + 1, pos: pos, low: low})
	case in.mode == lazy && (in.max < 0 || in.max > count):
		left := -1
		if in.max >= 0 {
			left = in.max - count
		}
		m.stack = append(m.stack, frame{kind: takeMore, pc: pc + 1, pos: pos, low: left, set: in.set})
	}
	return true, pc + 1, pos
}

// backtrack goes on at the last choice.
func (m *machine) backtrack(base int, s string) (pc, pos int, ok bool) {
	for len(m.stack) > base {
		f := &m.stack[len(m.stack)-1]
		switch f.kind {
		case giveBack:
			_, n := utf8.DecodeLastRuneInString(s[:f.pos])
			f.pos -= n
			pc, pos = f.pc, f.pos
			if f.pos <= f.low {
				m.stack = m.stack[:len(m.stack)-1]
			}
			return pc, pos, true
		case takeMore:
			r, n := next(s, f.pos)
			if n == 0 || f.low == 0 || !f.set.has(r) {
				m.stack = m.stack[:len(m.stack)-1]
				continue
			}
			f.pos += n
			f.low--
			return f.pc, f.pos, true
		}
		pc, pos = f.pc, f.pos
		m.stack = m.stack[:len(m.stack)-1]
		return pc, pos, true
	}
	return 0, 0, false
}
