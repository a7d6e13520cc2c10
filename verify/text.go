package verify

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/tokenizer"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/model"
)

// sample is a public-domain text; text/README.md says where it comes from.
//
//go:embed text/kjv.txt.zst
var sample []byte

// SampleName is what reports call the text that is built in.
const SampleName = "built-in text (King James Version, 1611)"

// DefaultContext is how many tokens a sequence has unless it is said.
const DefaultContext = 512

// maxText bounds a text, in bytes after decompression.
const maxText = 64 << 20

// TextOptions say how a text becomes token ids.
type TextOptions struct {
	// Context is the number of tokens of a sequence, special ones included; 0:
	// [DefaultContext], or what the base's configuration allows if that is less.
	Context int
	// Tokens is how many tokens all sequences have at most, of which each is as long as the
	// others; 0: the whole text.
	Tokens int
}

// SampleText is the text that is built in.
func SampleText() (string, error) {
	b, err := decompress(bytes.NewReader(sample), ".zst")
	return string(b), err
}

// ReadText reads a file of UTF-8 text. Names that end in .zst and .gz are decompressed.
// Errors are of class fault.Input for what is no such text.
func ReadText(path string) (s string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fault.Inputf("reading the text: %w", err)
	}
	if err != nil {
		return "", fault.IOf("reading the text: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readText(f, path)
}

// ReadTextFrom reads a text that is not compressed; name is for errors.
func ReadTextFrom(r io.Reader, name string) (string, error) { return readText(r, name) }

func readText(r io.Reader, path string) (string, error) {
	b, err := decompress(r, strings.ToLower(filepath.Ext(path)))
	if err != nil {
		return "", fmt.Errorf("reading %q: %w", path, err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return "", fault.Inputf("reading %q: there is no text in it", path)
	}
	return strings.TrimPrefix(string(b), "\uFEFF"), nil
}

// decompress reads all of a text of at most maxText bytes.
func decompress(r io.Reader, ext string) ([]byte, error) {
	switch ext {
	case ".zst":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxText))
		if err != nil {
			return nil, fault.Inputf("decompressing: %w", err)
		}
		defer d.Close()
		r = d
	case ".gz":
		d, err := gzip.NewReader(r)
		if err != nil {
			return nil, fault.Inputf("decompressing: %w", err)
		}
		r = d
	}
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	switch {
	case err != nil && (ext == ".zst" || ext == ".gz"):
		return nil, fault.Inputf("decompressing: %w", err)
	case err != nil:
		return nil, fault.IOf("%w", err)
	case len(b) > maxText:
		return nil, fault.Inputf("more than %d bytes of text", maxText)
	}
	return b, nil
}

// Tokenize makes sequences of a text with the base's tokenizer.json. Every sequence begins
// and ends with the ids that the tokenizer puts around a text, once, and between them has
// the next tokens of the text; what does not fill a last sequence is left out, unless it is
// the only one. Where the post-processor puts nothing before it, the bos_token
// of tokenizer_config.json is, unless that says add_bos_token false: lm-eval begins rolling
// windows so, and llama.cpp its chunks where the model asks for it.
//
// A candidate with another tokenizer.json must make the same ids of this text: warning
// says that the files differ, or that there is none to compare. Errors are of class
// fault.Input, with the hint to pass ids.
func Tokenize(base, candidate *hf.Checkpoint, text, name string, o TextOptions) (ids *IDs, warning string, err error) {
	ours, file, err := encodeWith(base, text)
	if err != nil {
		return nil, "", fmt.Errorf("tokenizing %s: %w", name, err)
	}
	path := filepath.Join(candidate.Path(), tokenizerFile)
	switch other, err := os.ReadFile(path); {
	case candidate.IsFile() || errors.Is(err, os.ErrNotExist):
		warning = fmt.Sprintf("%q has no %s to compare with the base's", candidate.Path(), tokenizerFile)
	case err != nil:
		return nil, "", fault.IOf("reading %q: %w", path, err)
	case !bytes.Equal(other, file):
		theirs, _, err := encodeWith(candidate, text)
		if err != nil {
			return nil, "", fmt.Errorf("tokenizing %s with the candidate's tokenizer, which is not the base's: %w", name, err)
		}
		if !equalEncodings(ours, theirs) {
			return nil, "", useIDs(fault.Inputf("tokenizing %s: the candidate's %s makes other ids of it than the base's", name, path))
		}
		warning = fmt.Sprintf("%q is not the base's, but makes the same ids of this text", path)
	}
	context, err := contextOf(base, o.Context)
	if err != nil {
		return nil, "", err
	}
	seqs, err := ours.sequences(context, o.Tokens)
	if err != nil {
		return nil, "", fmt.Errorf("tokenizing %s: %w", name, err)
	}
	if ids, err = NewIDs(seqs); err != nil {
		return nil, "", err
	}
	ids.Name, ids.Context = name, context
	return ids, warning, nil
}

const tokenizerFile = "tokenizer.json"

func useIDs(err error) error {
	return fault.WithHint(err, "tokenize with the Hugging Face tokenizers and pass the ids with --ids")
}

// encoding is a text's ids and those around every sequence.
type encoding struct{ before, ids, after []int }

func equalEncodings(a, b *encoding) bool {
	return slices.Equal(a.before, b.before) && slices.Equal(a.ids, b.ids) && slices.Equal(a.after, b.after)
}

// encodeWith returns the bytes of the tokenizer too.
func encodeWith(c *hf.Checkpoint, text string) (*encoding, []byte, error) {
	path := filepath.Join(c.Path(), tokenizerFile)
	if c.IsFile() {
		return nil, nil, useIDs(fault.Inputf("%q is a file, so that there is no %s beside it to tokenize with", c.Path(), tokenizerFile))
	}
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil, useIDs(fault.Inputf("%q has no %s to tokenize with", c.Path(), tokenizerFile))
	case err != nil:
		return nil, nil, fault.IOf("reading %q: %w", path, err)
	}
	t, err := tokenizer.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %q: %w", path, err)
	}
	e := &encoding{}
	if e.ids, err = t.Encode(text, false); err != nil {
		return nil, nil, useIDs(err)
	}
	e.before, e.after = t.Around()
	if len(e.before) == 0 {
		e.before, err = bos(c, t)
	}
	return e, raw, err
}

// bos is what tokenizer_config.json has sequences begin with.
func bos(c *hf.Checkpoint, t *tokenizer.Tokenizer) ([]int, error) {
	path := filepath.Join(c.Path(), "tokenizer_config.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.IOf("reading %q: %w", path, err)
	}
	var cfg struct {
		Add *bool           `json:"add_bos_token"`
		BOS json.RawMessage `json:"bos_token"`
	}
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, useIDs(fault.Inputf("reading %q: %w", path, err))
	}
	said := len(cfg.BOS) > 0 && string(cfg.BOS) != "null"
	if cfg.Add == nil && !said || cfg.Add != nil && !*cfg.Add {
		return nil, nil
	}
	var content string
	if json.Unmarshal(cfg.BOS, &content) != nil {
		var token struct {
			Content string `json:"content"`
		}
		if err := json.Unmarshal(cfg.BOS, &token); err == nil {
			content = token.Content
		}
	}
	ids, err := t.Encode(content, false)
	if err != nil || len(ids) != 1 {
		return nil, useIDs(fault.Inputf("reading %q: bos_token is to begin every sequence, and %s is not one token", path, cfg.BOS))
	}
	return ids, nil
}

// contextOf holds the number of tokens of a sequence to what the configuration allows.
func contextOf(base *hf.Checkpoint, asked int) (int, error) {
	limit := 0
	if cfg := base.Config(); cfg != nil {
		for _, path := range [][]string{{"max_position_embeddings"}, {"n_positions"}, {"text_config", "max_position_embeddings"}} {
			v, _ := cfg.Get(path...)
			if n, ok := v.(json.Number); ok {
				if k, err := n.Int64(); err == nil && k > 0 {
					limit = int(min(k, 1<<30))
					break
				}
			}
		}
	}
	switch {
	case asked == 0 && limit > 0:
		return min(DefaultContext, limit), nil
	case asked == 0:
		return DefaultContext, nil
	case limit > 0 && asked > limit:
		return 0, fault.Usagef("--context %d: the base has positions for %d tokens", asked, limit)
	}
	return asked, nil
}

// sequences cuts the ids.
func (e *encoding) sequences(context, limit int) ([]model.Sequence, error) {
	room := context - len(e.before) - len(e.after)
	if room < 1 {
		return nil, fault.Inputf("sequences of %d tokens have no room for text beside the %d that the tokenizer adds", context, len(e.before)+len(e.after))
	}
	if limit > 0 {
		room = min(room, limit-len(e.before)-len(e.after))
	}
	if room < 1 {
		return nil, fault.Inputf("a limit of %d tokens has no room for text beside the %d that the tokenizer adds", limit, len(e.before)+len(e.after))
	}
	rest, used := e.ids, 0
	var out []model.Sequence
	for len(rest) >= room || len(out) == 0 && len(rest) > 0 {
		n := min(room, len(rest))
		ids := slices.Concat(e.before, rest[:n], e.after)
		if limit > 0 && used+len(ids) > limit {
			break
		}
		out = append(out, model.Sequence{IDs: ids})
		used, rest = used+len(ids), rest[n:]
	}
	if len(out) == 0 {
		return nil, fault.Inputf("there are no tokens to run the models on")
	}
	return out, nil
}
