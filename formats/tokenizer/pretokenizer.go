package tokenizer

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// preTokenizer cuts a stretch, which is not empty, into words and may rewrite them.
// It appends to dst; empty words are dropped by appendWord.
type preTokenizer interface {
	cut(m *machine, dst []stretch, s stretch) ([]stretch, error)
}

type preTokenizers []preTokenizer

func (l preTokenizers) cut(m *machine, dst []stretch, s stretch) ([]stretch, error) {
	words := []stretch{s}
	for _, p := range l {
		var out []stretch
		var err error
		for _, w := range words {
			if out, err = p.cut(m, out, w); err != nil {
				return nil, err
			}
		}
		words = out
	}
	return append(dst, words...), nil
}

func appendWord(dst []stretch, s stretch, from, to int) []stretch {
	if from == to {
		return dst
	}
	return append(dst, stretch{s.text[from:to], s.first && from == 0})
}

// alphabet is GPT-2's character for each byte: itself where it is printable, else
// one from U+0100 up (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
var alphabet = func() (a [256]string) {
	n := rune(0x100)
	for b := range rune(256) {
		if '!' <= b && b <= '~' || 0xA1 <= b && b <= 0xFF && b != 0xAD {
			a[b] = string(b)
			continue
		}
		a[b] = string(n)
		n++
	}
	return a
}()

func byteLevel(s string) string {
	var b strings.Builder
	b.Grow(len(s) + len(s)/4)
	for i := range len(s) {
		b.WriteString(alphabet[s[i]])
	}
	return b.String()
}

// gpt2 is the pattern of ByteLevel with use_regex.
var gpt2 = func() *pattern {
	p, err := parsePattern(`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`)
	if err != nil {
		panic("tokenizer: internal error: " + err.Error())
	}
	return p
}()

type byteLevelCut struct{ prefix, regex bool }

func (p byteLevelCut) cut(m *machine, dst []stretch, s stretch) ([]stretch, error) {
	if p.prefix && s.text[0] != ' ' {
		s.text = " " + s.text
	}
	from := len(dst)
	if p.regex {
		var err error
		if dst, err = (split{gpt2, isolated, false}).cut(m, dst, s); err != nil {
			return nil, err
		}
	} else {
		dst = append(dst, s)
	}
	for i := from; i < len(dst); i++ {
		dst[i].text = byteLevel(dst[i].text)
	}
	return dst, nil
}

type metaspace struct {
	replacement string
	scheme      string
	split       bool
}

func (p metaspace) cut(m *machine, dst []stretch, s stretch) ([]stretch, error) {
	s.text = strings.ReplaceAll(s.text, " ", p.replacement)
	if !strings.HasPrefix(s.text, p.replacement) && (p.scheme == "always" || p.scheme == "first" && s.first) {
		s.text = p.replacement + s.text
	}
	if !p.split {
		return append(dst, s), nil
	}
	return split{literal(p.replacement), mergedWithNext, false}.cut(m, dst, s)
}

// bert is BertPreTokenizer.
var bert = preTokenizers{split{oneOf(isSpace), removed, false}, split{oneOf(isPunctuation), isolated, false}}

// wordsOf cuts runs of word characters and runs of others out, without the spaces.
type wordsOf struct{}

func (wordsOf) cut(_ *machine, dst []stretch, s stretch) ([]stretch, error) {
	from, last := 0, 0
	for i, r := range s.text {
		kind := 1
		switch {
		case isWord(r):
			kind = 2
		case isSpace(r):
			kind = 0
		}
		if kind != last {
			if last != 0 {
				dst = appendWord(dst, s, from, i)
			}
			from, last = i, kind
		}
	}
	if last != 0 {
		dst = appendWord(dst, s, from, len(s.text))
	}
	return dst, nil
}

func buildPreTokenizer(what string, raw json.RawMessage, depth int) (preTokenizer, error) {
	kind, err := typeOf(what, raw)
	if err != nil {
		return nil, err
	}
	what += " " + kind
	var c struct {
		Type      string            `json:"type"`
		Parts     []json.RawMessage `json:"pretokenizers"`
		Prefix    *bool             `json:"add_prefix_space"`
		Trim      *bool             `json:"trim_offsets"`
		Regex     *bool             `json:"use_regex"`
		Pattern   matchText         `json:"pattern"`
		Behavior  *string           `json:"behavior"`
		Invert    *bool             `json:"invert"`
		Replace   *string           `json:"replacement"`
		Scheme    *string           `json:"prepend_scheme"`
		Split     *bool             `json:"split"`
		StrRep    *string           `json:"str_rep"`
		Digits    *bool             `json:"individual_digits"`
		Delimiter *string           `json:"delimiter"`
	}
	if err := decode(what, raw, &c); err != nil {
		return nil, err
	}
	if err := only(what, raw, preTokenizerFields[kind]); err != nil {
		return nil, err
	}
	switch kind {
	case "Sequence":
		list, err := sequence(what, c.Parts, depth, buildPreTokenizer)
		return preTokenizers(list), err
	case "ByteLevel":
		if c.Prefix == nil {
			return nil, refuse("%s: no add_prefix_space", what)
		}
		return byteLevelCut{*c.Prefix, c.Regex == nil || *c.Regex}, nil
	case "Split":
		if c.Behavior == nil || c.Invert == nil {
			return nil, refuse("%s: behavior and invert must be given", what)
		}
		b, err := behaviorOf(what, *c.Behavior)
		if err != nil {
			return nil, err
		}
		f, err := c.Pattern.compile(what)
		return split{f, b, *c.Invert}, err
	case "Metaspace":
		if c.Replace == nil || utf8.RuneCountInString(*c.Replace) != 1 {
			return nil, refuse("%s: the replacement must be one character", what)
		}
		p := metaspace{*c.Replace, "always", c.Split == nil || *c.Split}
		if c.Scheme != nil {
			p.scheme = *c.Scheme
		}
		if c.Prefix != nil && !*c.Prefix {
			if c.Scheme != nil && *c.Scheme != "never" {
				return nil, refuse("%s: add_prefix_space is false and prepend_scheme is %q", what, *c.Scheme)
			}
			p.scheme = "never"
		}
		if p.scheme != "always" && p.scheme != "first" && p.scheme != "never" {
			return nil, refuse("%s: prepend_scheme %q is not known", what, p.scheme)
		}
		return p, nil
	case "Digits":
		if c.Digits == nil {
			return nil, refuse("%s: no individual_digits", what)
		}
		if *c.Digits {
			return split{oneOf(isNumeric), isolated, false}, nil
		}
		return split{oneOf(isNumeric), contiguous, false}, nil
	case "Punctuation":
		b := isolated
		if c.Behavior != nil {
			if b, err = behaviorOf(what, *c.Behavior); err != nil {
				return nil, err
			}
		}
		return split{oneOf(isPunctuation), b, false}, nil
	case "CharDelimiterSplit":
		if c.Delimiter == nil || utf8.RuneCountInString(*c.Delimiter) != 1 {
			return nil, refuse("%s: the delimiter must be one character", what)
		}
		return split{literal(*c.Delimiter), removed, false}, nil
	case "Whitespace":
		return wordsOf{}, nil
	case "WhitespaceSplit":
		return split{oneOf(isSpace), removed, false}, nil
	case "BertPreTokenizer":
		return bert, nil
	}
	return nil, refuse("%s is not known", what)
}

// preTokenizerFields are the settings of each kind besides its type.
var preTokenizerFields = map[string]string{
	"Sequence":           "pretokenizers",
	"ByteLevel":          "add_prefix_space trim_offsets use_regex",
	"Split":              "pattern behavior invert",
	"Metaspace":          "replacement add_prefix_space prepend_scheme split str_rep",
	"Digits":             "individual_digits",
	"Punctuation":        "behavior",
	"CharDelimiterSplit": "delimiter",
	"Whitespace":         "",
	"WhitespaceSplit":    "",
	"BertPreTokenizer":   "",
}

// only refuses fields other than "type" and the listed ones, letter for letter.
func only(what string, raw json.RawMessage, fields string) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return refuse("%s: %w", what, err)
	}
	for name := range m {
		if name != "type" && !strings.Contains(" "+fields+" ", " "+name+" ") {
			return refuse("%s: the setting %q is not known", what, name)
		}
	}
	return nil
}
