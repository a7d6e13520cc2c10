package tokenizer

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/klauspost/compress/zstd"

	"github.com/nf4conv/nf4conv/internal/fault"
)

const kjv = "../../fixtures/models/kjv-llama/"

type golden struct {
	Name      string          `json:"name"`
	Tokenizer json.RawMessage `json:"tokenizer"`
	Texts     []string        `json:"texts"`
	IDs       [][]int         `json:"ids"`
}

func readGolden(t testing.TB) []golden {
	t.Helper()
	f, err := os.Open("testdata/golden.jsonl.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	d := json.NewDecoder(bufio.NewReader(z))
	var list []golden
	for d.More() {
		var g golden
		if err := d.Decode(&g); err != nil {
			t.Fatal(err)
		}
		if g.Name != "" {
			list = append(list, g)
		}
	}
	return list
}

// TestGolden holds the ids of every kind of tokenizer to those of tokenizers 0.23.3;
// interop/golden_tokenizer.py wrote them.
func TestGolden(t *testing.T) {
	list := readGolden(t)
	if len(list) < 30 {
		t.Fatalf("%d tokenizers, want 30 or more", len(list))
	}
	for _, g := range list {
		t.Run(g.Name, func(t *testing.T) {
			tok, err := Parse(g.Tokenizer)
			if err != nil {
				t.Fatal(err)
			}
			if len(g.Texts) != len(g.IDs) || len(g.Texts) < 200 {
				t.Fatalf("%d texts and %d lists of ids", len(g.Texts), len(g.IDs))
			}
			for i, text := range g.Texts {
				got, err := tok.Encode(text, true)
				if err != nil && tok.older && strings.ContainsFunc(text, func(r rune) bool { return unicode.Is(newer, r) }) {
					continue // refused as it must be
				}
				if err != nil {
					t.Errorf("%q: %v", text, err)
				} else if !slices.Equal(got, g.IDs[i]) {
					t.Errorf("%q: got %v, want %v", text, got, g.IDs[i])
				}
			}
		})
	}
}

// TestFixture compares with eval_ids.safetensors: rows of <s> and 255 consecutive
// tokens of eval.txt, which transformers made.
func TestFixture(t *testing.T) {
	tok, err := Open(kjv + "tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(kjv + "eval.txt")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := tok.Encode(string(text), false)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(kjv + "eval_ids.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	n := 8 + binary.LittleEndian.Uint64(raw)
	const rows, width = 159, 256
	if got, want := len(raw)-int(n), rows*width*8; got != want {
		t.Fatalf("eval_ids.safetensors has %d bytes of ids, want %d", got, want)
	}
	for row := range rows {
		var want []int
		for i := range width {
			want = append(want, int(binary.LittleEndian.Uint64(raw[int(n)+8*(row*width+i):])))
		}
		got := append([]int{0}, ids[row*(width-1):(row+1)*(width-1)]...)
		if !slices.Equal(got, want) {
			t.Fatalf("row %d: got %v, want %v", row, got, want)
		}
	}
}

func file(normalizer, pre, post, model string) string {
	return `{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":` + normalizer + `,"pre_tokenizer":` + pre +
		`,"post_processor":` + post + `,"decoder":null,"model":` + model + `}`
}

const words = `{"type":"WordLevel","vocab":{"a":0,"<unk>":1},"unk_token":"<unk>"}`

func splitBy(pattern string) string {
	p, err := json.Marshal(pattern)
	if err != nil {
		panic(err)
	}
	return `{"type":"Split","pattern":{"Regex":` + string(p) + `},"behavior":"Isolated","invert":false}`
}

// TestRefusals shows that what is not followed is an error that names it.
func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"normalizer", file(`{"type":"Cyrillic"}`, `null`, `null`, words), "normalizer Cyrillic is not known"},
		{"nested normalizer", file(`{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Odd"}]}`, `null`, `null`, words), "normalizer Sequence 1 Odd"},
		{"pre-tokenizer", file(`null`, `{"type":"UnicodeScripts"}`, `null`, words), "pre-tokenizer UnicodeScripts is not known"},
		{"setting", file(`null`, `{"type":"Digits","individual_digits":true,"odd":1}`, `null`, words), "odd"},
		{"setting of another", file(`null`, `{"type":"Digits","individual_digits":true,"invert":true}`, `null`, words), "invert"},
		{"post-processor", file(`null`, `null`, `{"type":"Odd"}`, words), "post-processor Odd is not known"},
		{"model", file(`null`, `null`, `null`, `{"type":"Neural","vocab":{}}`), "model Neural is not known"},
		{"dropout", file(`null`, `null`, `null`, `{"type":"BPE","vocab":{},"merges":[],"dropout":0.1}`), "dropout"},
		{"merge", file(`null`, `null`, `null`, `{"type":"BPE","vocab":{"a":0},"merges":["a b"]}`), "not both are in the vocabulary"},
		{"no type", file(`{}`, `null`, `null`, words), `no "type"`},
		{"version", strings.Replace(file(`null`, `null`, `null`, words), "1.0", "2.0", 1), "version"},
		{"top-level setting", strings.Replace(file(`null`, `null`, `null`, words), `"padding"`, `"odd"`, 1), "odd"},
		{"id of an added token", strings.Replace(file(`null`, `null`, `null`, words), `"added_tokens":[]`, `"added_tokens":[{"id":9,"content":"x"}]`, 1), "id 9"},
		{"lookbehind", file(`null`, splitBy(`(?<=ab)c`), `null`, words), "lookbehind"},
		{"backreference", file(`null`, splitBy(`(a)\1`), `null`, words), `\1`},
		{"word boundary", file(`null`, splitBy(`\bx`), `null`, words), `\b`},
		{"empty match", file(`null`, splitBy(`a*`), `null`, words), "empty string"},
		{"intersection", file(`null`, splitBy(`[a-z&&b]`), `null`, words), "intersection"},
		{"folded class", file(`null`, splitBy(`(?i:[ab])`), `null`, words), "(?i:...)"},
		{"folded pair", file(`null`, splitBy(`(?i:ss)`), `null`, words), "folds"},
		{"long repetition", file(`null`, splitBy(`(?:ab){1,99999}`), `null`, words), "repetition"},
		{"not JSON", "{", "tokenizer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.file))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want it to have %q", err, c.want)
			}
			if fault.ClassOf(err) != fault.Input || !strings.Contains(strings.Join(fault.Hints(err), " "), "--ids") {
				t.Errorf("class %v, hints %q", fault.ClassOf(err), fault.Hints(err))
			}
		})
	}
	if _, err := Open("testdata/missing.json"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want it not to exist", err)
	}
}

// TestTextRefused is about text that has no sure ids.
func TestTextRefused(t *testing.T) {
	tok, err := Parse([]byte(file(`null`, splitBy(`(?:x|xx|xxx)+y`), `null`, words)))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"not UTF-8":    "a\xff",
		"unassigned":   "a\U0002FFFF",
		"backtracking": strings.Repeat("x", 2000),
	} {
		if _, err := tok.Encode(text, true); fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: got %v, want an error of class Input", name, err)
		}
	}
	if ids, err := tok.Encode("a", true); err != nil || !slices.Equal(ids, []int{0}) {
		t.Errorf("got %v, %v", ids, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(file(`{"type":"NFC"}`, splitBy(`'s| ?\p{L}+|\s+(?!\S)|[^\s]{1,3}`), `null`, words)), "a b")
	f.Add([]byte(file(`{"type":"Precompiled","precompiled_charsmap":"BAAAAAAAAAA="}`, `{"type":"Metaspace","replacement":"_"}`, `null`,
		`{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],["a",-1]]}`)), "aé")
	f.Add([]byte(file(`null`, `{"type":"ByteLevel","add_prefix_space":true}`, `{"type":"BertProcessing","sep":["a",0],"cls":["b",1]}`,
		`{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}`)), "ab")
	f.Add([]byte(file(`null`, `null`, `null`, `{"type":"WordPiece","unk_token":"u","vocab":{"u":0,"##a":1}}`)), "aa")
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		if len(raw) > 1<<16 || len(text) > 1<<10 {
			return
		}
		tok, err := Parse(raw)
		if err == nil {
			_, err = tok.Encode(text, true)
		}
		if err != nil && fault.ClassOf(err) != fault.Input {
			t.Errorf("%v is not of class Input", err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	text, err := os.ReadFile(kjv + "eval.txt")
	if err != nil {
		b.Fatal(err)
	}
	for _, g := range readGolden(b) {
		tok, err := Parse(g.Tokenizer)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(g.Name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := tok.Encode(string(text), true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
