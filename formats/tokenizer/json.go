package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// refuse is an error about a part of the file that this package does not follow.
func refuse(format string, a ...any) error {
	return fault.WithHint(fault.Inputf(format, a...),
		"tokenize with the Hugging Face tokenizers and pass the ids with --ids")
}

// isNull tells an absent or null JSON value.
func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || string(raw) == "null"
}

// decode reads raw into v and refuses fields v does not have: a setting that is not
// understood may change the ids.
func decode(what string, raw json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return refuse("%s: %w", what, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return refuse("%s: data after the JSON value", what)
	}
	return nil
}

// typeOf reads the "type" of a component.
func typeOf(what string, raw json.RawMessage) (string, error) {
	var t struct {
		Type *string `json:"type"`
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return "", refuse("%s: %w", what, err)
	}
	if t.Type == nil {
		return "", refuse(`%s: no "type"`, what)
	}
	return *t.Type, nil
}

// maxNesting bounds Sequences within Sequences.
const maxNesting = 16

// sequence builds the parts of a Sequence component.
func sequence[T any](what string, parts []json.RawMessage, depth int, build func(string, json.RawMessage, int) (T, error)) ([]T, error) {
	if depth >= maxNesting {
		return nil, refuse("%s: more than %d Sequences within each other", what, maxNesting)
	}
	var out []T
	for i, raw := range parts {
		p, err := build(fmt.Sprintf("%s %d", what, i), raw, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// matchText is the pattern of Replace and Split: exactly one of the two.
type matchText struct {
	String *string
	Regex  *string
}

// compile makes the finder of the pattern.
func (m matchText) compile(what string) (finder, error) {
	switch {
	case m.String != nil && m.Regex == nil:
		if *m.String == "" {
			return nil, refuse("%s: an empty pattern", what)
		}
		return literal(*m.String), nil
	case m.Regex != nil && m.String == nil:
		p, err := parsePattern(*m.Regex)
		if err != nil {
			return nil, fmt.Errorf("%s: pattern %q: %w", what, *m.Regex, err)
		}
		return p, nil
	}
	return nil, refuse(`%s: a pattern is either a "String" or a "Regex"`, what)
}
