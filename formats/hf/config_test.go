package hf

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

// What is written is what was read, but for white space: order, the spelling of numbers
// and strings, and of keys.
func TestConfigIsKept(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{}`, "{}\n"},
		{` { "a" : { } , "b" : [ ] } `, "{\n  \"a\": {},\n  \"b\": []\n}\n"},
		{`{"z":1,"a":2,"m":3}`, "{\n  \"z\": 1,\n  \"a\": 2,\n  \"m\": 3\n}\n"},
		{`{"a":1e-05,"b":6.0,"c":1E+2,"d":-0,"e":-0.0,"f":123456789012345678901234567890,"g":1.50}`,
			"{\n  \"a\": 1e-05,\n  \"b\": 6.0,\n  \"c\": 1E+2,\n  \"d\": -0,\n  \"e\": -0.0,\n  \"f\": 123456789012345678901234567890,\n  \"g\": 1.50\n}\n"},
		{`{"a":"\u00e9é<&>\/ \ud83e\udd99 \ud800","b":"\u2028` + "\u2028" + `"}`, "{\n  \"a\": \"\\u00e9é<&>\\/ \\ud83e\\udd99 \\ud800\",\n  \"b\": \"\\u2028\u2028\"\n}\n"},
		{`{"<a>&":0,"\u00e9":1,"é2":2,"\ud800":3,"a\/b":4,"` + "\u2028" + `":5,"":6,", ":7}`,
			"{\n  \"<a>&\": 0,\n  \"\\u00e9\": 1,\n  \"é2\": 2,\n  \"\\ud800\": 3,\n  \"a\\/b\": 4,\n  \"\u2028\": 5,\n  \"\": 6,\n  \", \": 7\n}\n"},
		{"{\"l\":[1,[2,{\"k\":null}]],\r\n\t\"t\":true}", "{\n  \"l\": [\n    1,\n    [\n      2,\n      {\n        \"k\": null\n      }\n    ]\n  ],\n  \"t\": true\n}\n"},
	} {
		if got := string(parse(t, c.text).Encode()); got != c.want {
			t.Errorf("%s: written as\n%s\nwant\n%s", c.text, got, c.want)
		}
	}
}

func TestConfigGet(t *testing.T) {
	c := parse(t, `{"a":{"b":{"c":"deep","n":1e-05}},"list":[{"x":1}],"nil":null,"s":"t"}`)
	for _, x := range []struct {
		path []string
		want any
		ok   bool
	}{
		{[]string{"a", "b", "c"}, "deep", true},
		{[]string{"a", "b", "n"}, json.Number("1e-05"), true},
		{[]string{"nil"}, nil, true},
		{[]string{"a", "x"}, nil, false},
		{[]string{"s", "t"}, nil, false},
		{[]string{"nil", "x"}, nil, false},
		{[]string{"list", "0"}, nil, false},
		{nil, c.Map(), true},
	} {
		if got, ok := c.Get(x.path...); ok != x.ok || !reflect.DeepEqual(got, x.want) {
			t.Errorf("Get(%q) = %v, %v; want %v, %v", x.path, got, ok, x.want, x.ok)
		}
	}
	if _, ok := c.String("nil"); ok {
		t.Error("null is taken for a string")
	}
	if raw, ok := c.Raw("list"); !ok || string(raw) != `[{"x":1}]` {
		t.Errorf("Raw = %s, %v", raw, ok)
	}
}

// Set and Delete leave the old value as it was, and each other's copies.
func TestConfigIsImmutable(t *testing.T) {
	const text = `{"a":1,"b":{"c":2},"d":3}`
	c := parse(t, text)
	value := []byte(`"new"`)
	set := c.Set("b", value)
	value[1] = 'X'
	added, gone := c.Set("e<f>", json.RawMessage(`[1.0]`)), c.Delete("a")
	c.Keys()[0] = "changed"
	for want, c := range map[string]*Config{
		text: c, `{"a":1,"b":"new","d":3}`: set, `{"a":1,"b":{"c":2},"d":3,"e\u003cf\u003e":[1.0]}`: added, `{"b":{"c":2},"d":3}`: gone,
		`{"b":{"c":2},"d":3,"a":4}`: gone.Set("a", json.RawMessage("4")),
	} {
		var got bytes.Buffer
		if err := json.Compact(&got, c.Encode()); err != nil || got.String() != want {
			t.Errorf("%s, %v; want %s", got.String(), err, want)
		}
		if len(c.Map()) != len(c.Keys()) {
			t.Errorf("%s: %d values of %d keys", want, len(c.Map()), len(c.Keys()))
		}
	}
	if v, _ := set.Get("b"); v != "new" {
		t.Errorf("Get after Set: %v", v)
	}
	if _, ok := gone.Raw("a"); ok {
		t.Error("deleted and still there")
	}
	for _, bad := range []string{"", "1 2", "{", "nan"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Set took %q", bad)
				}
			}()
			c.Set("x", json.RawMessage(bad))
		}()
	}
}

func TestParseConfigRefuses(t *testing.T) {
	deep := func(n int) string {
		return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
	}
	parse(t, deep(maxDepth))
	for _, c := range []struct{ text, want string }{
		{``, "too early"}, {` `, "too early"}, {`{`, "too early"}, {`{"a"`, "at byte"}, {`{"a":}`, "at byte"}, {`{"a":1,}`, "at byte"}, {`{a:1}`, "at byte"},
		{`[]`, "a JSON object"}, {`1`, "a JSON object"}, {`null`, "a JSON object"}, {`"{}"`, "a JSON object"}, {`[{}`, "too early"},
		{`{} {}`, "follows"}, {"{}\x00", "follows"}, {`{}x`, "follows"}, {"\ufeff{}", "at byte"},
		{`{"a":01}`, "at byte"}, {`{"a":.5}`, "at byte"}, {`{"a":-NaN}`, "at byte"}, {`{"a":1NaN}`, "at byte"}, {`{"a":NaN1}`, "at byte"}, {`{"a":nan}`, "at byte"}, {`{"a":--Infinity}`, "at byte"}, {`{NaN:1}`, "at byte"}, {`{"a":Infinity.0}`, "at byte"}, {`{"a":+1}`, "at byte"}, {"{\"a\":\"\n\"}", "at byte"}, {`{"a":'b'}`, "at byte"},
		{`{"a":1,"a":1}`, `"a" stands twice`}, {`{"a":1,"\u0061":2}`, `"a" stands twice`}, {`{"x":[0,{"y":{"b":1,"c":2,"b":3}}]}`, `"b" stands twice`},
		{`{"":1,"":2}`, `"" stands twice`}, {deep(maxDepth + 1), "256 deep"}, {"{\"a\":\"\xff\"}", "UTF-8"}, {"{\"\xc0\x80\":1}", "UTF-8"},
		{`{"a":"` + strings.Repeat("x", maxConfig) + `"}`, "more than a configuration has"},
	} {
		got, err := ParseConfig([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.50q: %v, %v; want an error with %q", c.text, got, err, c.want)
		}
	}
	// One key in two objects is no duplicate, nor is a value that equals a key.
	parse(t, `{"a":{"a":"a"},"b":[{"a":"b"},{"a":"a"},"a","a"],"c":"c"}`)
}

func TestDType(t *testing.T) {
	for _, c := range []struct {
		text, name, key string
		ok              bool
	}{
		{`{}`, "", "", false},
		{`{"dtype":"bfloat16"}`, "bfloat16", "dtype", true},
		{`{"torch_dtype":"torch.float16"}`, "float16", "torch_dtype", true},
		{`{"torch_dtype":"float16","dtype":"float32"}`, "float32", "dtype", true},
		{`{"dtype":null,"torch_dtype":"float16"}`, "float16", "torch_dtype", true},
		{`{"text_config":{"torch_dtype":"bfloat16"}}`, "bfloat16", "torch_dtype", true},
		{`{"text_config":{"torch_dtype":"bfloat16","dtype":"float16"}}`, "float16", "dtype", true},
		{`{"torch_dtype":"float32","text_config":{"dtype":"bfloat16"}}`, "float32", "torch_dtype", true},
		{`{"vision_config":{"dtype":"bfloat16"}}`, "", "", false},
	} {
		if name, key, ok := parse(t, c.text).DType(); name != c.name || key != c.key || ok != c.ok {
			t.Errorf("%s: %q by %q, %v; want %q by %q, %v", c.text, name, key, ok, c.name, c.key, c.ok)
		}
	}
}

func TestArchitecture(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "", `{"architectures":null}`: "", `{"architectures":[]}`: "", `{"architectures":["A","B"]}`: "A",
	} {
		if got := parse(t, text).Architecture(); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if got := parse(t, `{"model_type":"llama"}`).ModelType(); got != "llama" {
		t.Errorf("model type %q", got)
	}
}

// FuzzParseConfig: what is accepted is JSON, comes out as it went in but for white space
// between tokens, and reads back the same; what encoding/json refuses is refused.
func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"architectures":["A"],"dtype":"bfloat16","rms_norm_eps":1e-05,"llm_int8_threshold":6.0}`, `{"a":{"b":[1,{"c":null}]},"d":true}`,
		`{"\u00e9":"\ud83e\udd99","<&>":"<&>","a\/b":-0.0}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":[{"b":1,"b":2}]}`, "{\"\u2028\" :\t1e999,\r\n\"\":[]} ", `{"\ud800":1,"\udfff":2}`,
		`{"weight_map":{"a":"model-00001-of-00002.safetensors"}}`, `{"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}`, `[1]`, `{"a":1}}`, "{}\f", "{}\u0085",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		if !json.Valid(b) || !utf8.Valid(b) {
			t.Fatalf("%q: accepted", b)
		}
		out := c.Encode()
		var in, back bytes.Buffer
		if err := json.Compact(&in, b); err != nil {
			t.Fatal(err)
		}
		if err := json.Compact(&back, out); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(in.Bytes(), back.Bytes()) {
			t.Fatalf("%s became %s", in.Bytes(), back.Bytes())
		}
		d, err := ParseConfig(out)
		if err != nil {
			t.Fatalf("%s, made of %s, is refused: %v", out, b, err)
		}
		if !slices.Equal(c.Keys(), d.Keys()) || !reflect.DeepEqual(c.Map(), d.Map()) || !bytes.Equal(out, d.Encode()) {
			t.Fatalf("%s is read back otherwise", out)
		}
		var all map[string]any
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if err := dec.Decode(&all); err != nil || !reflect.DeepEqual(all, c.Map()) {
			t.Fatalf("%s: read as %v, by encoding/json as %v, %v", b, c.Map(), all, err)
		}
		if keys := c.Keys(); len(keys) > 0 { // nothing is left of a key that is deleted
			k := keys[0]
			if e := c.Delete(k).Set(k, json.RawMessage("0")).Set(k, c.raw[k]); !reflect.DeepEqual(e.Map(), c.Map()) {
				t.Fatalf("%q deleted and set again: %v", k, e.Map())
			}
		}
	})
}

// FuzzParseIndex: no accepted index leads out of its directory or to another kind of file.
func FuzzParseIndex(f *testing.F) {
	for _, s := range []string{
		`{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model.safetensors"}}`, `{"weight_map":{}}`, `{"weight_map":{"a":1}}`,
		`{"weight_map":{"a":"../m.safetensors"}}`, `{"weight_map":{"a":"..\\m.safetensors"}}`, `{"weight_map":{"a":"/m.safetensors"}}`, `{"weight_map":{"a":"\u002e\u002e\u002fm.safetensors"}}`,
		`{"weight_map":{"a":".safetensors"}}`, `{"weight_map":{"a":"m.bin"}}`, `{"weight_map":["a"]}`, `{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}`, `{"weight_map":{"a":"C:m.safetensors"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseIndex("index", b)
		if err != nil {
			return
		}
		var want struct {
			Map map[string]string `json:"weight_map"`
		}
		c, err := ParseConfig(b)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := c.Raw("weight_map") // by itself: encoding/json takes keys of any case
		if err := json.Unmarshal([]byte(`{"weight_map":`+string(raw)+`}`), &want); err != nil || !reflect.DeepEqual(m, want.Map) || len(m) == 0 {
			t.Fatalf("%s: read as %v, by encoding/json as %v, %v", b, m, want.Map, err)
		}
		for _, name := range m {
			if strings.ContainsAny(name, `/\`) || !strings.HasSuffix(name, ".safetensors") {
				t.Fatalf("accepted the file name %q", name)
			}
		}
	})
}

// Python's json writes NaN and infinities, which are no JSON.
func TestParseConfigNonFinite(t *testing.T) {
	const text = `{ "a":NaN, "b" : [ 0.0,Infinity , {"x":-Infinity}, "NaN, \"Infinity\"" , [ ], { } ], "c": {"d": NaN}, "NaN": 1.50}`
	c := parse(t, text)
	for _, q := range []struct {
		path []string
		want any
	}{
		{[]string{"a"}, json.Number("NaN")}, {[]string{"c", "d"}, json.Number("NaN")}, {[]string{"NaN"}, json.Number("1.50")},
		{[]string{"b"}, []any{json.Number("0.0"), json.Number("Infinity"), map[string]any{"x": json.Number("-Infinity")}, `NaN, "Infinity"`, []any{}, map[string]any{}}},
	} {
		if got, _ := c.Get(q.path...); !cmp.Equal(got, q.want) {
			t.Errorf("%v: %v, want %v", q.path, got, q.want)
		}
	}
	const want = `{
  "a": NaN,
  "b": [
    0.0,
    Infinity,
    {
      "x": -Infinity
    },
    "NaN, \"Infinity\"",
    [],
    {}
  ],
  "c": {
    "d": NaN
  },
  "NaN": 1.50,
  "e": [
    Infinity
  ]
}
`
	c = c.Set("e", json.RawMessage("[Infinity]"))
	if diff := cmp.Diff(want, string(c.Encode())); diff != "" {
		t.Errorf("encoded (-want +got)\n%s", diff)
	}
	if again := parse(t, want); !bytes.Equal(again.Encode(), []byte(want)) {
		t.Errorf("encoded again: %s", again.Encode())
	}
	inner := parse(t, `{"text_config":{"limit":[Infinity],"dtype":"float32"}}`)
	raw, _ := inner.Raw("text_config")
	if part := parse(t, string(raw)); string(inner.Set("text_config", part.Encode()).Encode()) != string(inner.Encode()) {
		t.Errorf("a part taken out and put back: %s", inner.Encode())
	}
}
