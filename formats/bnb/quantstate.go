package bnb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// QuantState is what bitsandbytes needs to know of a packed weight beside its tensors.
type QuantState struct {
	Type            nf4.Type
	BlockSize       int           // elements per absmax
	DType           kernels.Float // of the weight that was quantized, and that dequantizing gives
	Shape           []int64       // logical, [out, in]
	Nested          bool          // double quantization
	NestedBlockSize int           // 256
	NestedDType     string        // "float32"
	NestedOffset    float32       // mean of absmax, taken off before the second level
}

// JSON is the state byte for byte as Python's json.dumps writes the dictionary of
// bitsandbytes (functional.py, QuantState.as_dict; utils.py, pack_dict_to_tensor).
func (q QuantState) JSON() []byte { return q.encode(pythonFloat(q.NestedOffset)) }

func (q QuantState) encode(offset string) []byte {
	b := fmt.Appendf(nil, `{"quant_type": "%v", "blocksize": %d, "dtype": "%v", "shape": [`, q.Type, q.BlockSize, q.DType)
	for i, d := range q.Shape {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendInt(b, d, 10)
	}
	b = append(b, ']')
	if q.Nested {
		b = fmt.Appendf(b, `, "nested_blocksize": %d, "nested_dtype": "%s", "nested_offset": %s`, q.NestedBlockSize, q.NestedDType, offset)
	}
	return append(b, '}')
}

// longestOffset is as long as the text of any float32 gets: a sign, 17 digits, a point
// and an exponent of two digits.
const longestOffset = "-1.2345678901234567e-45"

// MaxJSONLen bounds the length of JSON over all offsets.
func (q QuantState) MaxJSONLen() int { return len(q.encode(longestOffset)) }

// pythonFloat is Python's repr of the float32 widened to a double: the shortest text
// that reads back as that double, in exponent form below 1e-4 and from 1e16 on.
func pythonFloat(f float32) string {
	v := float64(f)
	switch {
	case v != v:
		return "NaN"
	case math.IsInf(v, 0):
		if v < 0 {
			return "-Infinity"
		}
		return "Infinity"
	}
	s := strconv.FormatFloat(v, 'e', -1, 64)
	mantissa, exp, _ := strings.Cut(s, "e")
	if e, _ := strconv.Atoi(exp); v != 0 && (e < -4 || e >= 16) {
		return mantissa + "e" + exp
	}
	s = strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// stateFields are the JSON keys.
type stateFields struct {
	Type            *string  `json:"quant_type"`
	BlockSize       *int     `json:"blocksize"`
	DType           *string  `json:"dtype"`
	Shape           []int64  `json:"shape"`
	NestedBlockSize *int     `json:"nested_blocksize"`
	NestedDType     *string  `json:"nested_dtype"`
	NestedOffset    *float64 `json:"nested_offset"`
}

var stateKeys = []string{"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"}

// ParseQuantState reads the JSON as strictly as bitsandbytes does: it refuses unknown
// keys, missing keys and values that nothing could load.
func ParseQuantState(b []byte) (QuantState, error) {
	// Keys are compared here: encoding/json takes any case, and the last of two.
	object, err := hf.ParseConfig(b)
	if err != nil {
		return QuantState{}, fmt.Errorf("quant state: %w", err)
	}
	for _, key := range object.Keys() {
		if !slices.Contains(stateKeys, key) {
			return QuantState{}, fmt.Errorf("quant state: unknown key %q", key)
		}
	}
	if shape, _ := object.Raw("shape"); bytes.Contains(shape, []byte("null")) {
		return QuantState{}, fmt.Errorf("quant state: shape: expected integers, found %s", shape)
	}
	var f stateFields
	if err := json.Unmarshal(b, &f); err != nil {
		return QuantState{}, fmt.Errorf("quant state: %w", err)
	}
	if f.Type == nil || f.BlockSize == nil || f.DType == nil || f.Shape == nil {
		return QuantState{}, errors.New("quant state: quant_type, blocksize, dtype and shape are needed")
	}
	q := QuantState{BlockSize: *f.BlockSize, Shape: f.Shape}
	if q.Type, err = nf4.Parse(*f.Type); err != nil {
		return QuantState{}, fmt.Errorf("quant state: quant_type: %w", err)
	}
	if err := nf4.CheckBlockSize(q.BlockSize); err != nil {
		return QuantState{}, fmt.Errorf("quant state: blocksize: %w", err)
	}
	switch *f.DType {
	case "float32":
		q.DType = kernels.F32
	case "bfloat16":
		q.DType = kernels.BF16
	case "float16":
		q.DType = kernels.F16
	default:
		return QuantState{}, fmt.Errorf("quant state: dtype: expected float32, bfloat16 or float16, found %q", *f.DType)
	}
	if _, err := elems(q.Shape); err != nil {
		return QuantState{}, err
	}
	nested := f.NestedBlockSize != nil || f.NestedDType != nil || f.NestedOffset != nil
	if !nested {
		return q, nil
	}
	if f.NestedBlockSize == nil || f.NestedDType == nil || f.NestedOffset == nil {
		return QuantState{}, errors.New("quant state: of nested_blocksize, nested_dtype and nested_offset some are missing")
	}
	q.Nested, q.NestedBlockSize, q.NestedDType, q.NestedOffset = true, *f.NestedBlockSize, *f.NestedDType, float32(*f.NestedOffset)
	if math.IsInf(float64(q.NestedOffset), 0) {
		return QuantState{}, fmt.Errorf("quant state: nested_offset: %g is out of the range of float32", *f.NestedOffset)
	}
	if q.NestedBlockSize != doublequant.BlockSize {
		return QuantState{}, fmt.Errorf("quant state: nested_blocksize: expected %d, found %d", doublequant.BlockSize, q.NestedBlockSize)
	}
	if q.NestedDType != "float32" {
		return QuantState{}, fmt.Errorf("quant state: nested_dtype: expected float32, found %q", q.NestedDType)
	}
	return q, nil
}

// elems multiplies a shape, refusing what no tensor has.
func elems(shape []int64) (int64, error) {
	n := uint64(1)
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("quant state: shape: %v has a negative entry", shape)
		}
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 || lo > math.MaxInt64/8 {
			return 0, fmt.Errorf("quant state: shape: %v is too large", shape)
		}
		n = lo
	}
	return int64(n), nil
}
