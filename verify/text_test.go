package verify

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

const kjv = "../fixtures/models/kjv-llama"

func openModel(t *testing.T, dir string) *hf.Checkpoint {
	t.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestTokenizeIsTheReference: eval_ids.safetensors was cut from eval.txt by Hugging Face
// tokenizers, <s> and 255 tokens each.
func TestTokenizeIsTheReference(t *testing.T) {
	c := openModel(t, kjv)
	text, err := ReadText(filepath.Join(kjv, "eval.txt"))
	if err != nil {
		t.Fatal(err)
	}
	got, warning, err := Tokenize(c, c, text, "eval.txt", TextOptions{Context: 256})
	if err != nil || warning != "" {
		t.Fatalf("warning %q, error %v", warning, err)
	}
	want, err := ReadIDs(filepath.Join(kjv, "eval_ids.safetensors"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Sequences) < len(want.Sequences) {
		t.Fatalf("%d sequences, want %d", len(got.Sequences), len(want.Sequences))
	}
	for i := range want.Sequences {
		if d := cmp.Diff(want.Sequences[i].IDs, got.Sequences[i].IDs); d != "" {
			t.Fatalf("sequence %d: %s", i, d)
		}
	}
	if len(got.Sequences) != len(want.Sequences) {
		t.Errorf("%d sequences, want %d", len(got.Sequences), len(want.Sequences))
	}
}

func TestTokenizeLimits(t *testing.T) {
	c := openModel(t, kjv)
	text, err := SampleText()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		TextOptions
		sequences, longest int
	}{
		{TextOptions{Tokens: 1000}, 1, 512}, {TextOptions{Tokens: 1024}, 2, 512}, {TextOptions{Tokens: 40}, 1, 40}, {TextOptions{Context: 64, Tokens: 200}, 3, 64},
	} {
		ids, _, err := Tokenize(c, c, text, "sample", o.TextOptions)
		if err != nil {
			t.Fatal(err)
		}
		if len(ids.Sequences) != o.sequences || ids.longest() != o.longest {
			t.Errorf("%+v: %d sequences, longest %d; want %d, %d", o.TextOptions, len(ids.Sequences), ids.longest(), o.sequences, o.longest)
		}
		for _, s := range ids.Sequences {
			if s.IDs[0] != 0 {
				t.Errorf("%+v: a sequence begins with %d, not <s>", o.TextOptions, s.IDs[0])
			}
		}
	}
	whole, _, err := Tokenize(c, c, text, SampleName, TextOptions{})
	if err != nil || whole.Tokens < 10_000 || whole.Name != SampleName || whole.Context != DefaultContext {
		t.Errorf("the whole sample: %+v, %v; want what the default policy asks for, 10,000 tokens", whole.Tokens, err)
	}
	for _, o := range []TextOptions{{Context: 1 << 20}, {Context: 1}, {Tokens: 1}} {
		if _, _, err := Tokenize(c, c, text, "sample", o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// withTokenizer is the fixture with other tokenizer files; nil removes one.
func withTokenizer(t *testing.T, files map[string][]byte) *hf.Checkpoint {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} {
		b, ok := files[name]
		if !ok {
			var err error
			if b, err = os.ReadFile(filepath.Join(kjv, name)); err != nil {
				t.Fatal(err)
			}
		}
		if b == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return openModel(t, dir)
}

func TestTokenizeCandidate(t *testing.T) {
	base := openModel(t, kjv)
	raw, err := os.ReadFile(filepath.Join(kjv, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	spaced := append(slices.Clone(raw), '\n')
	wordLevel := []byte(`{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}, "pre_tokenizer": {"type": "WhitespaceSplit"}}`)
	for _, c := range []struct {
		name          string
		file          []byte
		warning, fail string
	}{
		{"the same", raw, "", ""},
		{"another file, the same ids", spaced, "makes the same ids", ""},
		{"none", nil, "has no tokenizer.json", ""},
		{"other ids", wordLevel, "", "makes other ids"},
		{"broken", []byte("{"), "", "candidate's tokenizer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			other := withTokenizer(t, map[string][]byte{"tokenizer.json": c.file})
			_, warning, err := Tokenize(base, other, "In the beginning", "x", TextOptions{})
			if !strings.Contains(warning, c.warning) || (warning == "") != (c.warning == "") {
				t.Errorf("warning %q, want %q", warning, c.warning)
			}
			checkHint(t, err, c.fail)
		})
	}
	t.Run("a base without one", func(t *testing.T) {
		_, _, err := Tokenize(withTokenizer(t, map[string][]byte{"tokenizer.json": nil}), base, "x", "x", TextOptions{})
		checkHint(t, err, "no tokenizer.json")
	})
}

// checkHint wants an error of class fault.Input that points to --ids.
func checkHint(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), want) || fault.ClassOf(err) != fault.Input || !strings.Contains(strings.Join(fault.Hints(err), " "), "--ids") {
		t.Errorf("error %v with hints %q; want %q of class input with a hint at --ids", err, fault.Hints(err), want)
	}
}

func TestBOSOfTheConfiguration(t *testing.T) {
	plain := []byte(`{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<s>": 2}, "unk_token": "a"}, "pre_tokenizer": {"type": "WhitespaceSplit"}}`)
	for _, c := range []struct {
		config string
		want   []int
		fail   string
	}{
		{`{"add_bos_token": true, "bos_token": "<s>"}`, []int{2, 1, 0}, ""},
		{`{"add_bos_token": true, "bos_token": {"content": "<s>"}}`, []int{2, 1, 0}, ""},
		{`{"add_bos_token": false, "bos_token": "<s>"}`, []int{1, 0}, ""},
		{`{"bos_token": "<s>"}`, []int{2, 1, 0}, ""},
		{`{"bos_token": null}`, []int{1, 0}, ""},
		{`{"bos_token": "b a"}`, nil, "not one token"},
		{`{"add_bos_token": true}`, nil, "not one token"},
		{`{"add_bos_token": 3}`, nil, "reading"},
	} {
		m := withTokenizer(t, map[string][]byte{"tokenizer.json": plain, "tokenizer_config.json": []byte(c.config)})
		ids, _, err := Tokenize(m, m, "b a", "x", TextOptions{})
		checkHint(t, err, c.fail)
		if err == nil && !slices.Equal(ids.Sequences[0].IDs, c.want) {
			t.Errorf("%s: %v, want %v", c.config, ids.Sequences[0].IDs, c.want)
		}
	}
}

func TestReadText(t *testing.T) {
	const text = "In the beginning"
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	_, err1 := g.Write([]byte(text))
	_, err2 := z.Write([]byte(text))
	if err := errors.Join(err1, err2, g.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"a.txt", []byte("\uFEFF" + text), text}, {"a.txt.gz", gz.Bytes(), text}, {"a.ZST", zst.Bytes(), text},
		{"cut.gz", gz.Bytes()[:20], ""}, {"cut.zst", zst.Bytes()[:12], ""}, {"plain.gz", []byte(text), ""}, {"empty.txt", []byte(" \n"), ""},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		if err := os.WriteFile(path, c.b, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ReadText(path)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}
