package hf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on config.json and on the other JSON files that are read.
const (
	maxConfig = 16 << 20
	maxDepth  = 256
)

// Config is config.json kept key for key: order, number text and nested values are
// those of the file, NaN and Infinity included, which Python's json writes. Values are
// immutable; Set and Delete return copies.
type Config struct {
	keys []string
	text map[string][]byte // the keys as they are spelled, with quotes and escapes
	raw  map[string]json.RawMessage
	tree map[string]any
}

// ParseConfig reads a JSON object. It refuses what is too large or too deep, what is not
// UTF-8, and keys that stand twice in one object.
func ParseConfig(b []byte) (*Config, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%d bytes are more than a configuration has (at most %d)", len(b), maxConfig)
	}
	if !utf8.Valid(b) {
		return nil, errors.New("it is not UTF-8")
	}
	plain := withoutNonFinite(b)
	if err := checkJSON(plain); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(plain))
	c := &Config{text: map[string][]byte{}, raw: map[string]json.RawMessage{}}
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("expected a JSON object")
	}
	for dec.More() {
		before := dec.InputOffset()
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		text := bytes.TrimLeft(b[before:dec.InputOffset()], ", \t\r\n")
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		key, end := t.(string), dec.InputOffset()
		c.keys = append(c.keys, key)
		c.text[key], c.raw[key] = bytes.Clone(text), bytes.Clone(b[end-int64(len(v)):end])
	}
	return c, c.index()
}

// checkJSON walks the tokens: depth, duplicate keys, trailing bytes.
func checkJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	type level struct {
		keys  map[string]bool // nil in an array
		value bool            // the next token of an object is a value
	}
	var stack []level
	for {
		t, err := dec.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the JSON ends too early")
			}
			return fmt.Errorf("at byte %d: %w", dec.InputOffset(), err)
		}
		if n := len(stack); n > 0 && stack[n-1].keys != nil {
			top := &stack[n-1]
			if key, ok := t.(string); ok && !top.value {
				if top.keys[key] {
					return fmt.Errorf("key %q stands twice", key)
				}
				top.keys[key], top.value = true, true
				continue
			}
			top.value = false
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
		if len(stack) > maxDepth {
			return fmt.Errorf("values are nested more than %d deep", maxDepth)
		}
		if len(stack) == 0 {
			break
		}
	}
	if rest := bytes.Trim(b[dec.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// index decodes the values for Get and Map.
func (c *Config) index() error {
	c.tree = make(map[string]any, len(c.keys))
	for k, raw := range c.raw {
		v, err := decode(raw)
		if err != nil {
			return fmt.Errorf("key %q: %w", k, err)
		}
		c.tree[k] = v
	}
	return nil
}

// Get walks down nested objects. Numbers are json.Number.
func (c *Config) Get(path ...string) (any, bool) {
	var v any = c.tree
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[key]; !ok {
			return nil, false
		}
	}
	return v, true
}

// String is Get for a string; ok is false for any other type.
func (c *Config) String(path ...string) (s string, ok bool) {
	v, _ := c.Get(path...)
	s, ok = v.(string)
	return s, ok
}

// Map is the whole configuration. It must not be changed.
func (c *Config) Map() map[string]any { return c.tree }

// Keys are the top-level keys in the order of the file.
func (c *Config) Keys() []string { return slices.Clone(c.keys) }

// Raw is the text of a top-level value.
func (c *Config) Raw(key string) (json.RawMessage, bool) { r, ok := c.raw[key]; return r, ok }

// Set returns a copy in which key has the value raw, in its old place or at the end.
// raw must be JSON, or JSON with NaN and Infinity.
func (c *Config) Set(key string, raw json.RawMessage) *Config {
	d := c.clone()
	if _, there := d.raw[key]; !there {
		text, err := json.Marshal(key)
		if err != nil {
			panic("hf: internal error: " + err.Error())
		}
		d.keys = append(d.keys, key)
		d.text[key] = text
	}
	if !json.Valid(withoutNonFinite(raw)) {
		panic("hf: internal error: no JSON for key " + key)
	}
	d.raw[key] = bytes.Clone(raw)
	if err := d.index(); err != nil {
		panic("hf: internal error: " + err.Error())
	}
	return d
}

// Delete returns a copy without key.
func (c *Config) Delete(key string) *Config {
	d := c.clone()
	d.keys = slices.DeleteFunc(d.keys, func(k string) bool { return k == key })
	delete(d.text, key)
	delete(d.raw, key)
	delete(d.tree, key)
	return d
}

func (c *Config) clone() *Config {
	return &Config{keys: slices.Clone(c.keys), text: maps.Clone(c.text), raw: maps.Clone(c.raw), tree: maps.Clone(c.tree)}
}

// Encode is the file's text: two spaces a level, a newline at the end, the text of
// keys, numbers and strings untouched.
func (c *Config) Encode() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, k := range c.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(c.text[k])
		b.WriteByte(':')
		b.Write(c.raw[k])
	}
	b.WriteByte('}')
	out, err := indent(b.Bytes())
	if err != nil {
		panic("hf: internal error: " + err.Error())
	}
	return append(out, '\n')
}

// ModelType is "model_type", or empty.
func (c *Config) ModelType() string { s, _ := c.String("model_type"); return s }

// Architecture is the first of "architectures", or empty.
func (c *Config) Architecture() string {
	v, _ := c.Get("architectures")
	if list, ok := v.([]any); ok && len(list) > 0 {
		s, _ := list[0].(string)
		return s
	}
	return ""
}

// DType is the dtype that the configuration names, as torch spells it without its
// "torch.", and the top-level key that holds it: "dtype" or "torch_dtype". When only
// the text model of a composite one names a dtype, key is the one used there and the
// value is valid for the whole.
func (c *Config) DType() (name, key string, ok bool) {
	for _, path := range [][]string{{"dtype"}, {"torch_dtype"}, {"text_config", "dtype"}, {"text_config", "torch_dtype"}} {
		if s, found := c.String(path...); found {
			return strings.TrimPrefix(s, "torch."), path[len(path)-1], true
		}
	}
	return "", "", false
}
