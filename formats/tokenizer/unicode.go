package tokenizer

import "unicode"

// chinese is what BERT sets apart by spaces: the blocks of CJK ideographs.
var chinese = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x3400, Hi: 0x4DBF, Stride: 1}, {Lo: 0x4E00, Hi: 0x9FFF, Stride: 1}, {Lo: 0xF900, Hi: 0xFAFF, Stride: 1}},
	R32: []unicode.Range32{
		{Lo: 0x20000, Hi: 0x2A6DF, Stride: 1}, {Lo: 0x2A700, Hi: 0x2B73F, Stride: 1}, {Lo: 0x2B740, Hi: 0x2B81F, Stride: 1},
		{Lo: 0x2B920, Hi: 0x2CEAF, Stride: 1}, {Lo: 0x2F800, Hi: 0x2FA1F, Stride: 1},
	},
}

// assigned are the characters whose properties Go's tables know.
var assigned = []*unicode.RangeTable{unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z, unicode.Cc, unicode.Cf, unicode.Co}

func isSpace(r rune) bool { return unicode.Is(unicode.White_Space, r) }

func isNumeric(r rune) bool { return unicode.Is(unicode.N, r) }

func isMark(r rune) bool { return unicode.Is(unicode.M, r) }

func isNonspacing(r rune) bool { return unicode.Is(unicode.Mn, r) }

// isControl is BERT's: control, format and private use, but not the three that are spaces.
func isControl(r rune) bool {
	return r != '\t' && r != '\n' && r != '\r' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co)
}

// isPunctuation is BERT's: punctuation, and the symbols of ASCII.
func isPunctuation(r rune) bool {
	if r < 0x80 {
		return 0x21 <= r && r <= 0x2F || 0x3A <= r && r <= 0x40 || 0x5B <= r && r <= 0x60 || 0x7B <= r && r <= 0x7E
	}
	return unicode.Is(unicode.P, r)
}

// isWord is \w of UTS 18 (https://unicode.org/reports/tr18/#word), which the Rust
// regex crate follows; Oniguruma's \w is another.
func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control)
}
