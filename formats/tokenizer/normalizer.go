package tokenizer

import (
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// stretch is a piece of text on its way to the model. first says that its first
// character comes from the first character of the whole text: Metaspace with
// prepend_scheme "first" asks for that.
type stretch struct {
	text  string
	first bool
}

// normalizer rewrites a stretch, which is not empty.
type normalizer interface {
	normalize(m *machine, s stretch) (stretch, error)
}

type normalizers []normalizer

func (l normalizers) normalize(m *machine, s stretch) (stretch, error) {
	var err error
	for _, n := range l {
		if s.text == "" {
			break
		}
		if s, err = n.normalize(m, s); err != nil {
			return s, err
		}
	}
	return s, nil
}

// mapping is a normalizer that takes no part of its own from the front.
type mapping func(string) string

func (f mapping) normalize(_ *machine, s stretch) (stretch, error) {
	return stretch{f(s.text), s.first}, nil
}

// filter removes the characters for which it is true.
type filter func(rune) bool

func (f filter) normalize(_ *machine, s stretch) (stretch, error) {
	r, _ := utf8.DecodeRuneInString(s.text)
	return stretch{strings.Map(func(r rune) rune {
		if f(r) {
			return -1
		}
		return r
	}, s.text), s.first && !f(r)}, nil
}

type strip struct{ left, right bool }

func (n strip) normalize(_ *machine, s stretch) (stretch, error) {
	t := s.text
	if n.left {
		t = strings.TrimLeftFunc(t, isSpace)
	}
	first := s.first && len(t) == len(s.text)
	if n.right {
		t = strings.TrimRightFunc(t, isSpace)
	}
	return stretch{t, first}, nil
}

type replace struct {
	pattern finder
	content string
}

func (n replace) normalize(m *machine, s stretch) (stretch, error) {
	var b strings.Builder
	at := 0
	for at < len(s.text) {
		start, end, ok, err := n.pattern.find(m, s.text, at)
		if err != nil {
			return s, err
		}
		if !ok {
			break
		}
		if start == 0 {
			// The replacement counts as coming from the last character of the match.
			_, size := utf8.DecodeRuneInString(s.text)
			s.first = s.first && n.content != "" && end == size
		}
		b.WriteString(s.text[at:start])
		b.WriteString(n.content)
		at = end
	}
	if at == 0 {
		return s, nil
	}
	b.WriteString(s.text[at:])
	return stretch{b.String(), s.first}, nil
}

// lower maps character by character, without the rule for the final sigma.
func lower(s string) string {
	return strings.ReplaceAll(strings.Map(func(r rune) rune {
		if r == 'İ' {
			return r // the one that becomes two
		}
		return unicode.ToLower(r)
	}, s), "İ", "i\u0307")
}

// nmt is the cleaning of SentencePiece's nmt rules, as tokenizers has it.
func nmt(r rune) rune {
	switch {
	case 1 <= r && r <= 8, r == 0xB, 0xE <= r && r <= 0x1F, r == 0x7F, r == 0x8F, r == 0x9F:
		return -1
	case r == '\t', r == '\n', r == '\f', r == '\r', r == 0x1680, 0x200B <= r && r <= 0x200F,
		r == 0x2028, r == 0x2029, r == 0x2581, r == 0xFEFF, r == 0xFFFD:
		return ' '
	}
	return r
}

type bertNormalizer struct {
	clean, chinese, accents, lowercase bool
}

func (n bertNormalizer) normalize(m *machine, s stretch) (stretch, error) {
	if n.clean {
		s, _ = filter(func(r rune) bool { return r == 0 || r == 0xFFFD || isControl(r) }).normalize(m, s)
		s.text = strings.Map(func(r rune) rune {
			if isSpace(r) {
				return ' '
			}
			return r
		}, s.text)
	}
	if n.chinese {
		var b strings.Builder
		for _, r := range s.text {
			if unicode.Is(chinese, r) {
				b.WriteByte(' ')
				b.WriteRune(r)
				b.WriteByte(' ')
			} else {
				b.WriteRune(r)
			}
		}
		s.text = b.String()
	}
	if n.accents && s.text != "" {
		s.text = norm.NFD.String(s.text)
		s, _ = filter(isNonspacing).normalize(m, s)
	}
	if n.lowercase {
		s.text = lower(s.text)
	}
	return s, nil
}

func buildNormalizer(what string, raw json.RawMessage, depth int) (normalizer, error) {
	kind, err := typeOf(what, raw)
	if err != nil {
		return nil, err
	}
	what += " " + kind
	bare := struct {
		Type string `json:"type"`
	}{}
	simple, ok := map[string]normalizer{
		"NFC":          mapping(norm.NFC.String),
		"NFD":          mapping(norm.NFD.String),
		"NFKC":         mapping(norm.NFKC.String),
		"NFKD":         mapping(norm.NFKD.String),
		"Lowercase":    mapping(lower),
		"StripAccents": filter(isMark),
		"ByteLevel":    mapping(byteLevel),
		"Nmt": normalizers{
			filter(func(r rune) bool { return nmt(r) < 0 }),
			mapping(func(s string) string { return strings.Map(nmt, s) }),
		},
	}[kind]
	if ok {
		return simple, decode(what, raw, &bare)
	}
	switch kind {
	case "Sequence":
		var c struct {
			Type        string            `json:"type"`
			Normalizers []json.RawMessage `json:"normalizers"`
		}
		if err := decode(what, raw, &c); err != nil {
			return nil, err
		}
		list, err := sequence(what, c.Normalizers, depth, buildNormalizer)
		return normalizers(list), err
	case "Strip":
		var c struct {
			Type  string `json:"type"`
			Left  *bool  `json:"strip_left"`
			Right *bool  `json:"strip_right"`
		}
		if err := decode(what, raw, &c); err != nil {
			return nil, err
		}
		if c.Left == nil || c.Right == nil {
			return nil, refuse("%s: strip_left and strip_right must be given", what)
		}
		return strip{*c.Left, *c.Right}, nil
	case "Replace":
		var c struct {
			Type    string    `json:"type"`
			Pattern matchText `json:"pattern"`
			Content *string   `json:"content"`
		}
		if err := decode(what, raw, &c); err != nil {
			return nil, err
		}
		if c.Content == nil {
			return nil, refuse("%s: no content", what)
		}
		f, err := c.Pattern.compile(what)
		return replace{f, *c.Content}, err
	case "Prepend":
		var c struct {
			Type    string  `json:"type"`
			Prepend *string `json:"prepend"`
		}
		if err := decode(what, raw, &c); err != nil {
			return nil, err
		}
		if c.Prepend == nil {
			return nil, refuse("%s: nothing to prepend", what)
		}
		return mapping(func(s string) string { return *c.Prepend + s }), nil
	case "BertNormalizer":
		var c struct {
			Type    string `json:"type"`
			Clean   *bool  `json:"clean_text"`
			Chinese *bool  `json:"handle_chinese_chars"`
			Accents *bool  `json:"strip_accents"`
			Lower   *bool  `json:"lowercase"`
		}
		if err := decode(what, raw, &c); err != nil {
			return nil, err
		}
		if c.Clean == nil || c.Chinese == nil || c.Lower == nil {
			return nil, refuse("%s: clean_text, handle_chinese_chars and lowercase must be given", what)
		}
		n := bertNormalizer{*c.Clean, *c.Chinese, *c.Lower, *c.Lower}
		if c.Accents != nil {
			n.accents = *c.Accents
		}
		return n, nil
	case "Precompiled":
		return buildPrecompiled(what, raw)
	}
	return nil, refuse("%s is not known", what)
}
