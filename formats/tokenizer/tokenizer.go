package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// maxFile is the size in bytes of a tokenizer.json that is read; those of 256,000
// tokens have about 35 MB.
const maxFile = 256 << 20

// Tokenizer encodes text. It may be used from several goroutines.
type Tokenizer struct {
	raw        *matcher // added tokens of the text as it is
	normalizer normalizer
	normalized *matcher // added tokens of the normalized text
	cut        preTokenizer
	model      model
	around     around
	older      bool // a component classes characters by older Unicode tables
}

// Open reads a tokenizer.json. What it says and this package does not follow is an
// error of class fault.Input with the hint to pass ids.
func Open(path string) (*Tokenizer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	t, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	return t, nil
}

// Parse makes a tokenizer of the content of a tokenizer.json; errors are those of Open.
func Parse(raw []byte) (*Tokenizer, error) {
	if len(raw) > maxFile {
		return nil, refuse("a tokenizer of more than %d bytes", maxFile)
	}
	raw = bytes.TrimPrefix(raw, []byte("\xEF\xBB\xBF"))
	var file struct {
		Version    *string         `json:"version"`
		Truncation json.RawMessage `json:"truncation"`
		Padding    json.RawMessage `json:"padding"`
		Added      []addedToken    `json:"added_tokens"`
		Normalizer json.RawMessage `json:"normalizer"`
		Pre        json.RawMessage `json:"pre_tokenizer"`
		Post       json.RawMessage `json:"post_processor"`
		Decoder    json.RawMessage `json:"decoder"`
		Model      json.RawMessage `json:"model"`
	}
	if err := decode("tokenizer", raw, &file); err != nil {
		return nil, err
	}
	if file.Version != nil && *file.Version != "1.0" {
		return nil, refuse("tokenizer version %q, only 1.0 is known", *file.Version)
	}
	t := &Tokenizer{}
	var err error
	if !isNull(file.Normalizer) {
		if t.normalizer, err = buildNormalizer("normalizer", file.Normalizer, 0); err != nil {
			return nil, err
		}
	}
	if !isNull(file.Pre) {
		if t.cut, err = buildPreTokenizer("pre-tokenizer", file.Pre, 0); err != nil {
			return nil, err
		}
		if t.normalizer != nil && laterFirst(t.cut, true) {
			return nil, refuse(`pre-tokenizer: Metaspace with prepend_scheme "first" after another one and a normalizer`)
		}
	}
	if !isNull(file.Post) {
		if t.around, err = buildPostProcessor("post-processor", file.Post, 0); err != nil {
			return nil, err
		}
	}
	if t.model, err = buildModel(file.Model); err != nil {
		return nil, err
	}
	for _, name := range []string{"Punctuation", "BertPreTokenizer", "BertNormalizer", "StripAccents"} {
		quoted := []byte(`"` + name + `"`)
		t.older = t.older || bytes.Contains(file.Normalizer, quoted) || bytes.Contains(file.Pre, quoted)
	}
	return t, t.add(file.Added)
}

// laterFirst tells whether a Metaspace that asks for the first word is not the first
// pre-tokenizer: where words were cut from normalized text, the first character of
// several may come from the first of the text.
func laterFirst(p preTokenizer, leading bool) bool {
	switch p := p.(type) {
	case metaspace:
		return p.scheme == "first" && !leading
	case preTokenizers:
		for _, q := range p {
			if laterFirst(q, leading) {
				return true
			}
			leading = false
		}
	}
	return false
}

// add takes the added tokens. tokenizers numbers those that the model does not have
// itself, so a file that says another id would not be read as it is written.
func (t *Tokenizer) add(tokens []addedToken) error {
	next := t.model.size()
	ids := map[string]int{}
	at := map[int]int{} // id to index in list
	var list []addedToken
	for _, a := range tokens {
		what := fmt.Sprintf("added token %q", a.Content)
		if a.Content == "" || a.ID == nil {
			return refuse("%s: content and id must be given", what)
		}
		id, ok := ids[a.Content]
		if !ok {
			id, ok = t.model.id(a.Content)
		}
		if !ok {
			id = next
			next++
		}
		if id != *a.ID {
			return refuse("%s: the file says id %d and tokenizers gives it %d", what, *a.ID, id)
		}
		ids[a.Content] = id
		if i, ok := at[id]; ok {
			list[i] = a
			continue
		}
		at[id] = len(list)
		list = append(list, a)
	}
	var raw, normalized []addedToken
	var rawText, normalizedText []string
	for _, a := range list {
		if !a.Normalized {
			raw, rawText = append(raw, a), append(rawText, a.Content)
			continue
		}
		s := stretch{text: a.Content}
		if t.normalizer != nil {
			var err error
			if s, err = t.normalizer.normalize(newMachine(len(a.Content)), s); err != nil {
				return err
			}
		}
		normalized, normalizedText = append(normalized, a), append(normalizedText, s.text)
	}
	var err error
	if t.raw, err = newMatcher("added tokens", rawText, raw); err != nil {
		return err
	}
	t.normalized, err = newMatcher("added tokens", normalizedText, normalized)
	return err
}

// stepsPerByte is far more than any pattern in use takes: those of GPT-4 take about 4.
const stepsPerByte = 200

func newMachine(size int) *machine { return &machine{steps: 1<<20 + stepsPerByte*size} }

const (
	maxCached     = 1 << 16 // words whose ids an Encode remembers
	maxCachedWord = 64      // bytes of such a word
)

// Encode returns the ids of text. With special, those that the post-processor adds
// (such as beginning-of-sequence) are among them; added tokens that are written out in
// the text are found either way, as in tokenizers. Truncation and padding of the file
// are not applied. The error, of class fault.Input, is about text that is not UTF-8,
// characters without a class in this program's Unicode tables, and words that the
// vocabulary cannot express.
func (t *Tokenizer) Encode(text string, special bool) ([]int, error) {
	if err := t.checkText(text); err != nil {
		return nil, err
	}
	m := newMachine(len(text))
	cache := map[string][]int{}
	var ids []int
	if special {
		ids = append(ids, t.around.before...)
	}
	var words []stretch
	for _, sec := range t.raw.cut(nil, stretch{text, true}) {
		if sec.id >= 0 {
			ids = append(ids, sec.id)
			continue
		}
		s := sec.stretch
		var err error
		if t.normalizer != nil {
			if s, err = t.normalizer.normalize(m, s); err != nil {
				return nil, err
			}
		}
		for _, sec := range t.normalized.cut(nil, s) {
			if sec.id >= 0 {
				ids = append(ids, sec.id)
				continue
			}
			words = append(words[:0], sec.stretch)
			if t.cut != nil {
				if words, err = t.cut.cut(m, words[:0], sec.stretch); err != nil {
					return nil, err
				}
			}
			for _, w := range words {
				if ids, err = t.encodeWord(ids, w.text, cache); err != nil {
					return nil, err
				}
			}
		}
	}
	if special {
		ids = append(ids, t.around.after...)
	}
	return ids, nil
}

// Around returns the ids that the post-processor puts before and after a text.
func (t *Tokenizer) Around() (before, after []int) {
	return slices.Clone(t.around.before), slices.Clone(t.around.after)
}

func (t *Tokenizer) encodeWord(ids []int, word string, cache map[string][]int) ([]int, error) {
	if known, ok := cache[word]; ok {
		return append(ids, known...), nil
	}
	from := len(ids)
	ids, err := t.model.encode(ids, word)
	if err == nil && len(word) <= maxCachedWord && len(cache) < maxCached {
		cache[word] = slices.Clone(ids[from:])
	}
	return ids, err
}

func (t *Tokenizer) checkText(text string) error {
	for i, r := range text {
		if r < utf8.RuneSelf {
			continue
		}
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(text[i:]); n == 1 {
				return fault.Inputf("the text is not valid UTF-8: byte %d is 0x%02X", i, text[i])
			}
		}
		if t.older && unicode.Is(newer, r) {
			return refuse("the text has %U at byte %d, which this tokenizer classes by older Unicode tables", r, i)
		}
		if !unicode.In(r, assigned...) {
			return refuse("the text has %U at byte %d, which Unicode %s does not know: its class is needed", r, i, unicode.Version)
		}
	}
	return nil
}
