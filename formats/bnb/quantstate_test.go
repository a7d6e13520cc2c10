package bnb_test

import (
	"bufio"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// golden calls each with every line of a file of testdata.
func golden(tb testing.TB, name string, each func(line []byte)) {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	n := 0
	for ; s.Scan(); n++ {
		each(s.Bytes())
	}
	if s.Err() != nil || n == 0 {
		tb.Fatalf("%s: %d lines, %v", name, n, s.Err())
	}
}

func nested(offset float32) bnb.QuantState {
	return bnb.QuantState{
		Type: nf4.NF4, BlockSize: 64, DType: kernels.BF16, Shape: []int64{128, 896},
		Nested: true, NestedBlockSize: 256, NestedDType: "float32", NestedOffset: offset,
	}
}

// same compares states by bits: an offset of -0 is not one of 0.
func same(a, b bnb.QuantState) bool {
	x, y := math.Float32bits(a.NestedOffset), math.Float32bits(b.NestedOffset)
	a.NestedOffset, b.NestedOffset = 0, 0
	return x == y && len(a.Shape) == len(b.Shape) && (len(a.Shape) == 0 || reflect.DeepEqual(a, b))
}

// TestQuantStateIsPythons reads what json.dumps wrote and wants the same bytes back:
// whole states, and 5000 offsets.
func TestQuantStateIsPythons(t *testing.T) {
	states, offsets := 0, 0
	zero := string(nested(0).JSON())
	before, after := strings.TrimSuffix(zero, "0.0}"), "}"
	golden(t, "quantstate.jsonl", func(line []byte) {
		var l struct {
			State   string
			Offsets map[string]string
		}
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		if l.State != "" {
			states++
			q, err := bnb.ParseQuantState([]byte(l.State))
			if err != nil {
				t.Errorf("%s: %v", l.State, err)
			} else if got := string(q.JSON()); got != l.State {
				t.Errorf("JSON is\n%s, Python's\n%s", got, l.State)
			}
		}
		for hex, want := range l.Offsets {
			offsets++
			bits, err := strconv.ParseUint(hex, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			q := nested(math.Float32frombits(uint32(bits)))
			if got := string(q.JSON()); got != before+want+after {
				t.Errorf("bits %s: %s, Python's number is %s", hex, got, want)
			}
			if n, most := len(q.JSON()), q.MaxJSONLen(); n > most {
				t.Errorf("bits %s: %d bytes, MaxJSONLen is %d", hex, n, most)
			}
			if back, err := bnb.ParseQuantState(q.JSON()); err != nil || !same(back, q) {
				t.Errorf("bits %s: parsed back as %+v, %v", hex, back, err)
			}
		}
	})
	if states != 120 || offsets < 5000 {
		t.Errorf("%d states and %d offsets, want 120 and 5000", states, offsets)
	}
}

// The blob of a model on the hub, and what Python prints where JSON has no number:
// weights with such scales are refused before they are written, but not by JSON.
func TestQuantStateExamples(t *testing.T) {
	hub := `{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 896], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.031807661056518555}`
	q, err := bnb.ParseQuantState([]byte(hub))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(q.JSON()); got != hub {
		t.Errorf("JSON is %s", got)
	}
	for offset, want := range map[float32]string{float32(math.Inf(1)): "Infinity", float32(math.Inf(-1)): "-Infinity", float32(math.NaN()): "NaN"} {
		if got := string(nested(offset).JSON()); !strings.HasSuffix(got, `"nested_offset": `+want+"}") {
			t.Errorf("offset %g: %s", offset, got)
		}
	}
}

// TestMaxJSONLen: the longest text must be known before the offset is, since the header
// is written first.
func TestMaxJSONLen(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	longest := 0
	for range 200_000 {
		q := nested(math.Float32frombits(r.Uint32()))
		n := len(q.JSON())
		longest = max(longest, n)
		if most := q.MaxJSONLen(); n > most {
			t.Fatalf("offset %g: %d bytes, MaxJSONLen is %d", q.NestedOffset, n, most)
		}
	}
	if most := nested(0).MaxJSONLen(); longest < most-1 {
		t.Errorf("MaxJSONLen is %d, the longest of many random states has %d: the bound wastes space", most, longest)
	}
	q := bnb.QuantState{Type: nf4.FP4, BlockSize: 4096, DType: kernels.F32, Shape: []int64{1, 2}}
	if n := len(q.JSON()); n != q.MaxJSONLen() {
		t.Errorf("without double quantization JSON has %d bytes, MaxJSONLen is %d", n, q.MaxJSONLen())
	}
}

func TestParseQuantStateRefuses(t *testing.T) {
	const plain = `"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 64]`
	const more = `, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5`
	for _, ok := range []string{plain, plain + more, `"shape": [2,64],"dtype":"float32","blocksize":4096,"quant_type":"fp4"`, plain + `, "nested_offset": 1, "nested_dtype": "float32", "nested_blocksize": 256`} {
		if _, err := bnb.ParseQuantState([]byte("{" + ok + "}")); err != nil {
			t.Errorf("{%s}: %v", ok, err)
		}
	}
	for _, bad := range []string{
		``, `null`, `[]`, `{}`, `{` + plain, `{` + plain + `} {}`, `{` + plain + `}` + "\x00",
		`{` + plain + `, "quant_type": "nf4"}`, `{` + plain + `, "Blocksize": 64}`, `{` + plain + `, "extra": 1}`,
		`{"blocksize": 64, "dtype": "bfloat16", "shape": [2, 64]}`, `{"quant_type": "nf4", "dtype": "bfloat16", "shape": [2, 64]}`,
		`{"quant_type": "nf4", "blocksize": 64, "shape": [2, 64]}`, `{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16"}`,
		`{"quant_type": "int4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 64]}`,
		`{"quant_type": "nf4", "blocksize": 48, "dtype": "bfloat16", "shape": [2, 64]}`,
		`{"quant_type": "nf4", "blocksize": 64.0, "dtype": "bfloat16", "shape": [2, 64]}`,
		`{"quant_type": "nf4", "blocksize": 64, "dtype": "torch.bfloat16", "shape": [2, 64]}`,
		`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, null]}`,
		`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, -1]}`,
		`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4294967296, 4294967296]}`,
		`{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": null}`,
		`{` + plain + `, "nested_offset": 0.5}`, `{` + plain + `, "nested_blocksize": 256, "nested_dtype": "float32"}`,
		`{` + plain + `, "nested_blocksize": 128, "nested_dtype": "float32", "nested_offset": 0.5}`,
		`{` + plain + `, "nested_blocksize": 256, "nested_dtype": "float16", "nested_offset": 0.5}`,
		`{` + plain + `, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1e39}`,
		`{` + plain + `, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": NaN}`,
	} {
		if q, err := bnb.ParseQuantState([]byte(bad)); err == nil {
			t.Errorf("%s: accepted as %+v", bad, q)
		}
	}
}

// FuzzParseQuantState: what parses is written back to something that parses the same and
// is no longer than was reserved for it.
func FuzzParseQuantState(f *testing.F) {
	n := 0
	golden(f, "quantstate.jsonl", func(line []byte) {
		var l struct{ State string }
		if err := json.Unmarshal(line, &l); err == nil && l.State != "" && n < 20 {
			f.Add([]byte(l.State))
			n++
		}
	})
	f.Add([]byte(`{"quant_type":"fp4","blocksize":32,"dtype":"float16","shape":[],"nested_offset":-0.0,"nested_dtype":"float32","nested_blocksize":256}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := bnb.ParseQuantState(b)
		if err != nil {
			return
		}
		text := q.JSON()
		if len(text) > q.MaxJSONLen() {
			t.Errorf("%s: %d bytes, MaxJSONLen is %d", text, len(text), q.MaxJSONLen())
		}
		back, err := bnb.ParseQuantState(text)
		if err != nil {
			t.Fatalf("%s, made of %q, does not parse: %v", text, b, err)
		}
		if !same(q, back) {
			t.Errorf("%q parses as %+v, written again as %+v", b, q, back)
		}
	})
}

func FuzzMaxJSONLen(f *testing.F) {
	f.Add(uint32(1), int64(1), int64(2), uint8(0))
	f.Add(uint32(0xb8d1b717), int64(1<<40), int64(0), uint8(255))
	f.Fuzz(func(t *testing.T, bits uint32, rows, cols int64, how uint8) {
		q := nested(math.Float32frombits(bits))
		q.Shape, q.Nested, q.DType = []int64{rows, cols}, how&1 == 0, kernels.Float(how>>1%3)
		if n := len(q.JSON()); n > q.MaxJSONLen() {
			t.Errorf("%s: %d bytes, MaxJSONLen is %d", q.JSON(), n, q.MaxJSONLen())
		}
	})
}
