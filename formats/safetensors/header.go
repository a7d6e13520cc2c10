package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// MaxHeader is the largest header that the format allows, in bytes.
const MaxHeader = 100_000_000

// maxHeaderMemory bounds the headers that are parsed: a header this long would hold some
// 200,000 tensors, more than any model has.
const maxHeaderMemory = 24 << 20

// Header is what a file says of itself.
type Header struct {
	Metadata  map[string]string
	Tensors   []Tensor        // by Begin
	DataStart int64           // offset in the file of the data section
	FileSize  int64           //
	Digest    treehash.Digest // BLAKE3-256 of the header's JSON, padding included
}

// ReadHeader reads and checks the header of a file of size bytes. Errors are of class
// fault.Input unless reading failed.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	var prefix [8]byte
	if size < int64(len(prefix)) {
		return nil, fault.Inputf("header: the file has %d bytes; a safetensors file has at least 8", size)
	}
	if _, err := r.ReadAt(prefix[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.IOf("header: %w", err)
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	switch {
	case n > MaxHeader:
		return nil, fault.WithHint(
			fault.Inputf("header: its length is given as %d bytes; the format allows %d", n, MaxHeader),
			"this is not a safetensors file, or its start is damaged")
	case int64(n) > size-8:
		return nil, fault.WithHint(
			fault.Inputf("header: truncated: its length is given as %d bytes, the file has %d after the length", n, size-8),
			"fetch the file again")
	case n > maxHeaderMemory:
		return nil, fault.Inputf("header: %d bytes are more than nf4conv reads (%d)", n, maxHeaderMemory)
	}
	raw := make([]byte, n)
	if _, err := r.ReadAt(raw, 8); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.IOf("header: %w", err)
	}
	h, err := parseHeader(raw)
	if err != nil {
		return nil, fault.Inputf("header: %w", err)
	}
	h.DataStart, h.FileSize, h.Digest = 8+int64(n), size, treehash.Sum(raw)
	if err := h.checkOffsets(); err != nil {
		return nil, fault.Inputf("header: %w", err)
	}
	return h, nil
}

// parser walks the tokens of a header. encoding/json's decoder would accept duplicate
// keys, skip unknown ones and round large numbers.
type parser struct{ dec *json.Decoder }

func parseHeader(raw []byte) (*Header, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("it is not UTF-8")
	}
	// The format pads with spaces and starts with a brace, so that a header is never
	// taken for something else.
	if len(raw) == 0 || raw[0] != '{' {
		return nil, errors.New("it does not start with '{'")
	}
	p := parser{json.NewDecoder(bytes.NewReader(raw))}
	p.dec.UseNumber()
	h := &Header{}
	seen := map[string]bool{}
	err := p.object(func(key string) error {
		if seen[key] {
			return fmt.Errorf("tensor %q: the name stands twice", key)
		}
		seen[key] = true
		if key == "__metadata__" {
			m, err := p.stringMap()
			h.Metadata = m
			return err
		}
		t, err := p.tensor(key)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", key, err)
		}
		h.Tensors = append(h.Tensors, t)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if rest := bytes.TrimRight(raw[p.dec.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes of something else follow the JSON object", len(rest))
	}
	return h, nil
}

func (p *parser) token() (json.Token, error) {
	t, err := p.dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the JSON ends too early")
		}
		return nil, fmt.Errorf("at byte %d: %w", p.dec.InputOffset(), err)
	}
	return t, nil
}

// object calls each for every key; each must consume the value.
func (p *parser) object(each func(key string) error) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return fmt.Errorf("expected a JSON object, found %s", describe(t))
	}
	for {
		t, err := p.token()
		if err != nil {
			return err
		}
		if t == json.Delim('}') {
			return nil
		}
		if err := each(t.(string)); err != nil {
			return err
		}
	}
}

func (p *parser) stringMap() (map[string]string, error) {
	m := map[string]string{}
	err := p.object(func(key string) error {
		if _, dup := m[key]; dup {
			return fmt.Errorf("__metadata__: key %q stands twice", key)
		}
		t, err := p.token()
		if err != nil {
			return err
		}
		s, ok := t.(string)
		if !ok {
			return fmt.Errorf("__metadata__: key %q: expected a string, found %s", key, describe(t))
		}
		m[key] = s
		return nil
	})
	return m, err
}

func (p *parser) tensor(name string) (Tensor, error) {
	t := Tensor{Name: name, Begin: -1}
	var have [3]bool
	once := func(i int, key string) error {
		if have[i] {
			return fmt.Errorf("key %q stands twice", key)
		}
		have[i] = true
		return nil
	}
	err := p.object(func(key string) error {
		switch key {
		case "dtype":
			v, err := p.token()
			if err != nil {
				return err
			}
			s, ok := v.(string)
			if !ok || s == "" {
				return fmt.Errorf("dtype: expected a string, found %s", describe(v))
			}
			t.DType = DType(s)
			return once(0, key)
		case "shape":
			v, err := p.integers(key, -1)
			t.Shape = v
			return errors.Join(err, once(1, key))
		case "data_offsets":
			v, err := p.integers(key, 2)
			if err != nil {
				return err
			}
			t.Begin, t.End = v[0], v[1]
			return once(2, key)
		}
		return fmt.Errorf("unknown key %q; expected dtype, shape and data_offsets", key)
	})
	if err != nil {
		return t, err
	}
	for i, key := range []string{"dtype", "shape", "data_offsets"} {
		if !have[i] {
			return t, fmt.Errorf("%s is missing", key)
		}
	}
	return t, t.check()
}

// maxDims bounds the rank of a tensor.
const maxDims = 64

// integers reads an array of non-negative integers, of the given length unless that is
// negative.
func (p *parser) integers(key string, length int) ([]int64, error) {
	t, err := p.token()
	if err != nil {
		return nil, err
	}
	if t != json.Delim('[') {
		return nil, fmt.Errorf("%s: expected an array of integers, found %s", key, describe(t))
	}
	v := []int64{}
	for {
		t, err := p.token()
		if err != nil {
			return nil, err
		}
		if t == json.Delim(']') {
			if length >= 0 && len(v) != length {
				return nil, fmt.Errorf("%s: expected %d integers, found %d", key, length, len(v))
			}
			return v, nil
		}
		n, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s: expected a non-negative integer, found %s", key, describe(t))
		}
		x, err := strconv.ParseInt(string(n), 10, 64)
		if err != nil || n[0] == '-' { // "-0" too
			return nil, fmt.Errorf("%s: expected an integer of 0 to 2^63-1, found %s", key, n)
		}
		if v = append(v, x); len(v) > maxDims {
			return nil, fmt.Errorf("%s: more than %d entries", key, maxDims)
		}
	}
}

func describe(t json.Token) string {
	switch v := t.(type) {
	case json.Delim:
		if v == '{' || v == '}' {
			return "an object"
		}
		return "an array"
	case string:
		return strconv.Quote(v)
	case nil:
		return "null"
	}
	return fmt.Sprint(t)
}

// check compares the shape with the offsets.
func (t *Tensor) check() error {
	if t.End < t.Begin {
		return fmt.Errorf("data_offsets %d to %d run backwards", t.Begin, t.End)
	}
	elems := uint64(1)
	for _, d := range t.Shape {
		hi, lo := bits.Mul64(elems, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			return fmt.Errorf("shape %v has more than 2^63 elements", t.Shape)
		}
		elems = lo
	}
	width, known := t.DType.Bits()
	if !known {
		return nil
	}
	hi, lo := bits.Mul64(elems, uint64(width))
	if hi != 0 || lo > math.MaxInt64 {
		return fmt.Errorf("shape %v of %s takes more than 2^63 bits", t.Shape, t.DType)
	}
	if lo%8 != 0 {
		return fmt.Errorf("shape %v of %s takes %d bits, which is no whole number of bytes", t.Shape, t.DType, lo)
	}
	if want := int64(lo / 8); want != t.Bytes() {
		return fmt.Errorf("shape %v of %s needs %d bytes, data_offsets hold %d", t.Shape, t.DType, want, t.Bytes())
	}
	return nil
}

// checkOffsets demands that the tensors cover the data section without gap or overlap.
func (h *Header) checkOffsets() error {
	slices.SortStableFunc(h.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End))
	})
	var end int64
	for i := range h.Tensors {
		t := &h.Tensors[i]
		switch {
		case t.Begin < end:
			return fmt.Errorf("tensor %q: its data begins at %d, within that of %q, which ends at %d", t.Name, t.Begin, h.Tensors[i-1].Name, end)
		case t.Begin > end:
			return fmt.Errorf("tensor %q: its data begins at %d; the %d bytes before it belong to no tensor", t.Name, t.Begin, t.Begin-end)
		}
		end = t.End
		if end > h.FileSize-h.DataStart {
			return fmt.Errorf("tensor %q: its data ends at %d, the file has %d bytes of data: it is truncated or the header is wrong", t.Name, end, h.FileSize-h.DataStart)
		}
	}
	if have := h.FileSize - h.DataStart; end != have {
		return fmt.Errorf("the file has %d bytes of data, the tensors cover %d", have, end)
	}
	return nil
}

// EncodeHeader is the start of a file: the 8-byte length, the JSON header in the order
// of the entries, and spaces up to padTo bytes in all, or up to the next multiple of 8
// when padTo is 0. Metadata keys are sorted.
func EncodeHeader(metadata map[string]string, ts []Tensor, padTo int64) ([]byte, error) {
	b := append(make([]byte, 8, 8+128*len(ts)), '{')
	if metadata != nil {
		m, err := json.Marshal(metadata)
		if err != nil {
			return nil, fmt.Errorf("encoding the header: %w", err)
		}
		b = append(append(b, `"__metadata__":`...), m...)
	}
	for i := range ts {
		if len(b) > 9 {
			b = append(b, ',')
		}
		name, err := json.Marshal(ts[i].Name)
		if err != nil {
			return nil, fmt.Errorf("encoding the header: %w", err)
		}
		dtype, err := json.Marshal(ts[i].DType) // what the file said: of an unknown dtype, anything
		if err != nil {
			return nil, fmt.Errorf("encoding the header: %w", err)
		}
		b = append(append(b, name...), `:{"dtype":`...)
		b = append(append(b, dtype...), `,"shape":[`...)
		for k, d := range ts[i].Shape {
			if k > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, d, 10)
		}
		b = append(b, `],"data_offsets":[`...)
		b = append(strconv.AppendInt(b, ts[i].Begin, 10), ',')
		b = append(strconv.AppendInt(b, ts[i].End, 10), "]}"...)
	}
	b = append(b, '}')
	if padTo == 0 {
		padTo = (int64(len(b)) + 7) / 8 * 8
	}
	if padTo%8 != 0 || int64(len(b)) > padTo || padTo-8 > MaxHeader {
		return nil, fmt.Errorf("encoding the header: %d bytes do not fit in %d", len(b), padTo)
	}
	b = append(b, bytes.Repeat([]byte(" "), int(padTo)-len(b))...)
	binary.LittleEndian.PutUint64(b, uint64(padTo-8))
	return b, nil
}
