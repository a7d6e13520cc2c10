package tokenizer

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// model makes ids of words, which are not empty.
type model interface {
	// size counts the entries of the vocabulary.
	size() int
	// id finds a token of the vocabulary.
	id(token string) (int, bool)
	// encode appends the ids of a word to dst.
	encode(dst []int, word string) ([]int, error)
}

// vocabulary is a "vocab" object: token to id.
type vocabulary map[string]int32

func (v vocabulary) size() int { return len(v) }

func (v vocabulary) id(token string) (int, bool) {
	id, ok := v[token]
	return int(id), ok
}

func (v vocabulary) check(what string) error {
	if v == nil {
		return refuse("%s: no vocab", what)
	}
	for token, id := range v {
		if id < 0 {
			return refuse("%s: the token %q has the id %d", what, token, id)
		}
	}
	return nil
}

// byteTokens are the ids of "<0x00>" to "<0xFF>", -1 where there is none.
func byteTokens(id func(string) (int, bool)) (ids [256]int) {
	for b := range ids {
		ids[b] = -1
		if id, ok := id(fmt.Sprintf("<0x%02X>", b)); ok {
			ids[b] = id
		}
	}
	return ids
}

// spelled appends the byte tokens of s, or reports that one is missing.
func spelled(dst []int, s string, bytes *[256]int) ([]int, bool) {
	for i := range len(s) {
		if bytes[s[i]] < 0 {
			return dst, false
		}
	}
	for i := range len(s) {
		dst = append(dst, bytes[s[i]])
	}
	return dst, true
}

var modelFields = map[string]string{
	"BPE": "dropout unk_token continuing_subword_prefix end_of_word_suffix fuse_unk byte_fallback ignore_merges vocab merges",
	// The two of sampling must be null.
	"Unigram":   "unk_id vocab byte_fallback alpha nbest_size",
	"WordPiece": "unk_token continuing_subword_prefix max_input_chars_per_word vocab",
	"WordLevel": "unk_token vocab",
}

func buildModel(raw json.RawMessage) (model, error) {
	if isNull(raw) {
		return nil, refuse("no model")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, refuse("model: %w", err)
	}
	kind, err := modelKind(fields)
	if err != nil {
		return nil, err
	}
	what := "model " + kind
	allowed, ok := modelFields[kind]
	if !ok {
		return nil, refuse("%s is not known", what)
	}
	for name := range fields {
		if name != "type" && !strings.Contains(" "+allowed+" ", " "+name+" ") {
			return nil, refuse("%s: the setting %q is not known", what, name)
		}
	}
	switch kind {
	case "BPE":
		return buildBPE(what, raw)
	case "Unigram":
		return buildUnigram(what, raw)
	case "WordPiece":
		return buildWordPiece(what, raw)
	}
	return buildWordLevel(what, raw)
}

// modelKind tells the model of files of before "type" by its settings.
func modelKind(fields map[string]json.RawMessage) (string, error) {
	if raw, ok := fields["type"]; ok {
		var kind string
		if err := json.Unmarshal(raw, &kind); err != nil {
			return "", refuse("model: type: %w", err)
		}
		return kind, nil
	}
	switch {
	case fields["merges"] != nil:
		return "BPE", nil
	case fields["max_input_chars_per_word"] != nil:
		return "WordPiece", nil
	}
	return "", refuse(`model: no "type"`)
}

type wordPiece struct {
	vocabulary
	unk     string
	prefix  string
	longest int // characters of a word that is looked at
	bytes   int // of the longest token
}

func buildWordPiece(what string, raw json.RawMessage) (model, error) {
	var c struct {
		Type   string     `json:"type"`
		Unk    *string    `json:"unk_token"`
		Prefix *string    `json:"continuing_subword_prefix"`
		Max    *uint64    `json:"max_input_chars_per_word"`
		Vocab  vocabulary `json:"vocab"`
	}
	if err := decode(what, raw, &c); err != nil {
		return nil, err
	}
	if err := c.Vocab.check(what); err != nil {
		return nil, err
	}
	w := wordPiece{vocabulary: c.Vocab, unk: "[UNK]", prefix: "##", longest: 100}
	if c.Unk != nil {
		w.unk = *c.Unk
	}
	if c.Prefix != nil {
		w.prefix = *c.Prefix
	}
	if c.Max != nil {
		w.longest = int(min(*c.Max, math.MaxInt32))
	}
	for token := range c.Vocab {
		w.bytes = max(w.bytes, len(token))
	}
	return w, nil
}

func (w wordPiece) encode(dst []int, word string) ([]int, error) {
	from := len(dst)
	if runeCountAbove(word, w.longest) {
		return w.unknown(dst)
	}
	for start := 0; start < len(word); {
		end := min(len(word), start+w.bytes)
		found := false
		for ; end > start && !found; end-- {
			if end < len(word) && word[end]&0xC0 == 0x80 {
				continue // within a character
			}
			token := word[start:end]
			if start > 0 {
				token = w.prefix + token
			}
			if id, ok := w.vocabulary[token]; ok {
				dst = append(dst, int(id))
				found = true
				break
			}
		}
		if !found {
			return w.unknown(dst[:from])
		}
		start = end
	}
	return dst, nil
}

func runeCountAbove(s string, n int) bool {
	if len(s) <= n {
		return false
	}
	for range s {
		if n--; n < 0 {
			return true
		}
	}
	return false
}

func (w wordPiece) unknown(dst []int) ([]int, error) {
	id, ok := w.vocabulary[w.unk]
	if !ok {
		return nil, refuse("a word outside the vocabulary, which has no token %q", w.unk)
	}
	return append(dst, int(id)), nil
}

type wordLevel struct {
	vocabulary
	unk string
}

func buildWordLevel(what string, raw json.RawMessage) (model, error) {
	var c struct {
		Type  string     `json:"type"`
		Unk   *string    `json:"unk_token"`
		Vocab vocabulary `json:"vocab"`
	}
	if err := decode(what, raw, &c); err != nil {
		return nil, err
	}
	w := wordLevel{c.Vocab, "<unk>"}
	if c.Unk != nil {
		w.unk = *c.Unk
	}
	return w, c.Vocab.check(what)
}

func (w wordLevel) encode(dst []int, word string) ([]int, error) {
	id, ok := w.vocabulary[word]
	if !ok {
		if id, ok = w.vocabulary[w.unk]; !ok {
			return nil, refuse("the word %.40q is not in the vocabulary, which has no token %q", word, w.unk)
		}
	}
	return append(dst, int(id)), nil
}
