package hf

import (
	"bytes"
	"encoding/json"
)

// nonFinite are the words that Python's json writes and reads beside JSON. Each is paired
// with a JSON number of its length.
var nonFinite = []struct{ word, number string }{
	{"-Infinity", "-0.000000"}, {"Infinity", "0.000000"}, {"NaN", "0.0"},
}

// spots finds the words outside of strings.
func spots(b []byte, found func(at, which int)) {
	inString := false
	for i := 0; i < len(b); i++ {
		switch {
		case inString && b[i] == '\\':
			i++
		case b[i] == '"':
			inString = !inString
		case !inString:
			for k, w := range nonFinite {
				if bytes.HasPrefix(b[i:], []byte(w.word)) && alone(b, i, i+len(w.word)) {
					found(i, k)
					i += len(w.word) - 1
					break
				}
			}
		}
	}
}

// alone tells whether what stands from i to j is a whole value: 1NaN is none.
func alone(b []byte, i, j int) bool {
	return (i == 0 || isSpace(b[i-1]) || bytes.IndexByte([]byte("[:,"), b[i-1]) >= 0) && (j == len(b) || isSpace(b[j]) || bytes.IndexByte([]byte("]},"), b[j]) >= 0)
}

// withoutNonFinite is b with numbers in place of NaN, Infinity and -Infinity, every other
// byte where it was.
func withoutNonFinite(b []byte) []byte {
	out, cloned := b, false
	spots(b, func(at, which int) {
		if !cloned {
			out, cloned = bytes.Clone(b), true
		}
		copy(out[at:], nonFinite[which].number)
	})
	return out
}

// decode reads a value; NaN and infinities are json.Number like all numbers.
func decode(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(withoutNonFinite(raw)))
	dec.UseNumber()
	return decodeNext(dec, raw)
}

func decodeNext(dec *json.Decoder, raw []byte) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		end := dec.InputOffset()
		return json.Number(raw[end-int64(len(t)) : end]), nil
	case json.Delim:
		if t == '[' {
			list := []any{}
			for dec.More() {
				v, err := decodeNext(dec, raw)
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
			_, err = dec.Token()
			return list, err
		}
		object := map[string]any{}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			if object[key.(string)], err = decodeNext(dec, raw); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return object, err
	}
	return t, nil
}

// indent is json.Indent with two spaces a level.
func indent(b []byte) ([]byte, error) {
	var out bytes.Buffer
	if err := json.Indent(&out, withoutNonFinite(b), "", "  "); err != nil {
		return nil, err
	}
	// The words come back in the order in which they stood: only white space has moved.
	text := out.Bytes()
	type spot struct{ at, which int }
	var found []spot
	spots(b, func(at, which int) { found = append(found, spot{at, which}) })
	i, j := 0, 0
	for _, s := range found {
		for i < s.at { // walk both texts, skipping white space that one has and the other has not
			switch {
			case b[i] == text[j]:
				i, j = i+1, j+1
			case isSpace(b[i]):
				i++
			default:
				j++
			}
		}
		for isSpace(text[j]) {
			j++
		}
		copy(text[j:], nonFinite[s.which].word)
		i, j = i+len(nonFinite[s.which].word), j+len(nonFinite[s.which].word)
	}
	return text, nil
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
