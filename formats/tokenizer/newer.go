package tokenizer

import "unicode"

// newer are the punctuation, marks and format characters that Go's tables have and the
// older ones of the crates behind Punctuation, BertPreTokenizer, BertNormalizer and
// StripAccents class differently. They were found by asking tokenizers 0.23.3 for
// every character.
var newer = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x061D, Hi: 0x061D, Stride: 1}, {Lo: 0x07FD, Hi: 0x07FD, Stride: 1}, {Lo: 0x0890, Hi: 0x0891, Stride: 1}, {Lo: 0x0898, Hi: 0x089F, Stride: 1}, {Lo: 0x08CA, Hi: 0x08E2, Stride: 1},
		{Lo: 0x09FD, Hi: 0x09FE, Stride: 1}, {Lo: 0x0A76, Hi: 0x0A76, Stride: 1}, {Lo: 0x0AFA, Hi: 0x0AFF, Stride: 1}, {Lo: 0x0B55, Hi: 0x0B55, Stride: 1}, {Lo: 0x0C04, Hi: 0x0C04, Stride: 1},
		{Lo: 0x0C3C, Hi: 0x0C3C, Stride: 1}, {Lo: 0x0C77, Hi: 0x0C77, Stride: 1}, {Lo: 0x0C84, Hi: 0x0C84, Stride: 1}, {Lo: 0x0CF3, Hi: 0x0CF3, Stride: 1}, {Lo: 0x0D00, Hi: 0x0D00, Stride: 1},
		{Lo: 0x0D3B, Hi: 0x0D3C, Stride: 1}, {Lo: 0x0D81, Hi: 0x0D81, Stride: 1}, {Lo: 0x0EBA, Hi: 0x0EBA, Stride: 1}, {Lo: 0x0ECE, Hi: 0x0ECE, Stride: 1}, {Lo: 0x1715, Hi: 0x1715, Stride: 1},
		{Lo: 0x1734, Hi: 0x1734, Stride: 1}, {Lo: 0x180F, Hi: 0x180F, Stride: 1}, {Lo: 0x1885, Hi: 0x1886, Stride: 1}, {Lo: 0x1ABF, Hi: 0x1ACE, Stride: 1}, {Lo: 0x1B7D, Hi: 0x1B7E, Stride: 1},
		{Lo: 0x1CF7, Hi: 0x1CF7, Stride: 1}, {Lo: 0x1DF6, Hi: 0x1DFB, Stride: 1}, {Lo: 0x2E43, Hi: 0x2E4F, Stride: 1}, {Lo: 0x2E52, Hi: 0x2E5D, Stride: 1}, {Lo: 0xA82C, Hi: 0xA82C, Stride: 1},
		{Lo: 0xA8C5, Hi: 0xA8C5, Stride: 1}, {Lo: 0xA8FF, Hi: 0xA8FF, Stride: 1}, {Lo: 0xA9BD, Hi: 0xA9BD, Stride: 1},
	},
	R32: []unicode.Range32{
		{Lo: 0x10D24, Hi: 0x10D27, Stride: 1}, {Lo: 0x10EAB, Hi: 0x10EAD, Stride: 1}, {Lo: 0x10EFD, Hi: 0x10EFF, Stride: 1}, {Lo: 0x10F46, Hi: 0x10F50, Stride: 1}, {Lo: 0x10F55, Hi: 0x10F59, Stride: 1},
		{Lo: 0x10F82, Hi: 0x10F89, Stride: 1}, {Lo: 0x11070, Hi: 0x11070, Stride: 1}, {Lo: 0x11073, Hi: 0x11074, Stride: 1}, {Lo: 0x110C2, Hi: 0x110C2, Stride: 1}, {Lo: 0x110CD, Hi: 0x110CD, Stride: 1},
		{Lo: 0x11145, Hi: 0x11146, Stride: 1}, {Lo: 0x111C9, Hi: 0x111C9, Stride: 1}, {Lo: 0x111CE, Hi: 0x111CF, Stride: 1}, {Lo: 0x1123E, Hi: 0x1123E, Stride: 1}, {Lo: 0x11241, Hi: 0x11241, Stride: 1},
		{Lo: 0x1133B, Hi: 0x1133B, Stride: 1}, {Lo: 0x11438, Hi: 0x1143F, Stride: 1}, {Lo: 0x11442, Hi: 0x11444, Stride: 1}, {Lo: 0x11446, Hi: 0x11446, Stride: 1}, {Lo: 0x1144B, Hi: 0x1144F, Stride: 1},
		{Lo: 0x1145A, Hi: 0x1145B, Stride: 1}, {Lo: 0x1145D, Hi: 0x1145E, Stride: 1}, {Lo: 0x11660, Hi: 0x1166C, Stride: 1}, {Lo: 0x116B9, Hi: 0x116B9, Stride: 1}, {Lo: 0x1182C, Hi: 0x1183B, Stride: 1},
		{Lo: 0x11930, Hi: 0x11935, Stride: 1}, {Lo: 0x11937, Hi: 0x11938, Stride: 1}, {Lo: 0x1193B, Hi: 0x1193E, Stride: 1}, {Lo: 0x11940, Hi: 0x11940, Stride: 1}, {Lo: 0x11942, Hi: 0x11946, Stride: 1},
		{Lo: 0x119D1, Hi: 0x119D7, Stride: 1}, {Lo: 0x119DA, Hi: 0x119E0, Stride: 1}, {Lo: 0x119E2, Hi: 0x119E2, Stride: 1}, {Lo: 0x119E4, Hi: 0x119E4, Stride: 1}, {Lo: 0x11A01, Hi: 0x11A0A, Stride: 1},
		{Lo: 0x11A33, Hi: 0x11A39, Stride: 1}, {Lo: 0x11A3B, Hi: 0x11A47, Stride: 1}, {Lo: 0x11A51, Hi: 0x11A5B, Stride: 1}, {Lo: 0x11A8A, Hi: 0x11A9C, Stride: 1}, {Lo: 0x11A9E, Hi: 0x11AA2, Stride: 1},
		{Lo: 0x11B00, Hi: 0x11B09, Stride: 1}, {Lo: 0x11C30, Hi: 0x11C36, Stride: 1}, {Lo: 0x11C38, Hi: 0x11C3D, Stride: 1}, {Lo: 0x11C3F, Hi: 0x11C3F, Stride: 1}, {Lo: 0x11C41, Hi: 0x11C45, Stride: 1},
		{Lo: 0x11C70, Hi: 0x11C71, Stride: 1}, {Lo: 0x11C92, Hi: 0x11CA7, Stride: 1}, {Lo: 0x11CAA, Hi: 0x11CB0, Stride: 1}, {Lo: 0x11CB2, Hi: 0x11CB3, Stride: 1}, {Lo: 0x11CB5, Hi: 0x11CB6, Stride: 1},
		{Lo: 0x11D31, Hi: 0x11D36, Stride: 1}, {Lo: 0x11D3A, Hi: 0x11D3A, Stride: 1}, {Lo: 0x11D3C, Hi: 0x11D3D, Stride: 1}, {Lo: 0x11D3F, Hi: 0x11D45, Stride: 1}, {Lo: 0x11D47, Hi: 0x11D47, Stride: 1},
		{Lo: 0x11D8A, Hi: 0x11D8E, Stride: 1}, {Lo: 0x11D90, Hi: 0x11D91, Stride: 1}, {Lo: 0x11D93, Hi: 0x11D97, Stride: 1}, {Lo: 0x11EF3, Hi: 0x11EF8, Stride: 1}, {Lo: 0x11F00, Hi: 0x11F01, Stride: 1},
		{Lo: 0x11F03, Hi: 0x11F03, Stride: 1}, {Lo: 0x11F34, Hi: 0x11F3A, Stride: 1}, {Lo: 0x11F3E, Hi: 0x11F4F, Stride: 1}, {Lo: 0x11FFF, Hi: 0x11FFF, Stride: 1}, {Lo: 0x12FF1, Hi: 0x12FF2, Stride: 1},
		{Lo: 0x13430, Hi: 0x13440, Stride: 1}, {Lo: 0x13447, Hi: 0x13455, Stride: 1}, {Lo: 0x16E97, Hi: 0x16E9A, Stride: 1}, {Lo: 0x16F4F, Hi: 0x16F4F, Stride: 1}, {Lo: 0x16F7F, Hi: 0x16F87, Stride: 1},
		{Lo: 0x16FE2, Hi: 0x16FE2, Stride: 1}, {Lo: 0x16FE4, Hi: 0x16FE4, Stride: 1}, {Lo: 0x16FF0, Hi: 0x16FF1, Stride: 1}, {Lo: 0x1CF00, Hi: 0x1CF2D, Stride: 1}, {Lo: 0x1CF30, Hi: 0x1CF46, Stride: 1},
		{Lo: 0x1E000, Hi: 0x1E006, Stride: 1}, {Lo: 0x1E008, Hi: 0x1E018, Stride: 1}, {Lo: 0x1E01B, Hi: 0x1E021, Stride: 1}, {Lo: 0x1E023, Hi: 0x1E024, Stride: 1}, {Lo: 0x1E026, Hi: 0x1E02A, Stride: 1},
		{Lo: 0x1E08F, Hi: 0x1E08F, Stride: 1}, {Lo: 0x1E130, Hi: 0x1E136, Stride: 1}, {Lo: 0x1E2AE, Hi: 0x1E2AE, Stride: 1}, {Lo: 0x1E2EC, Hi: 0x1E2EF, Stride: 1}, {Lo: 0x1E4EC, Hi: 0x1E4EF, Stride: 1},
		{Lo: 0x1E944, Hi: 0x1E94A, Stride: 1}, {Lo: 0x1E95E, Hi: 0x1E95F, Stride: 1},
	},
}
