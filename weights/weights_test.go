package weights_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/weights"
)

// open opens the logical tensors of a checkpoint made of ts.
func open(t *testing.T, config string, ts ...formatstest.Tensor) (*weights.Set, error) {
	t.Helper()
	dir := t.TempDir()
	formatstest.Write(t, dir, config, ts...)
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return weights.Open(c)
}

func mustOpen(t *testing.T, config string, ts ...formatstest.Tensor) *weights.Set {
	t.Helper()
	s, err := open(t, config, ts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lookup(t *testing.T, s *weights.Set, name string) weights.Tensor {
	t.Helper()
	x, ok := s.Lookup(name)
	if !ok {
		t.Fatalf("there is no %q", name)
	}
	return x
}

func elems(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}

// read reads a whole tensor at once.
func read(t *testing.T, x weights.Tensor) []float32 {
	t.Helper()
	v := make([]float32, elems(x.Shape()))
	if err := x.ReadF32(v, 0); err != nil {
		t.Fatalf("%s: %v", x.Name(), err)
	}
	return v
}

// same fails at the first value with other bits; all NaN are one.
func same(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i, w := range want {
		if g := got[i]; math.Float32bits(g) != math.Float32bits(w) && (g == g || w == w) {
			t.Fatalf("%s: value %d is %v (%08x), want %v (%08x)", what, i, g, math.Float32bits(g), w, math.Float32bits(w))
		}
	}
}

// ranges reads random pieces of a tensor, and wants the values that whole has there.
func ranges(t *testing.T, x weights.Tensor, whole []float32, r *rand.Rand) {
	t.Helper()
	n := len(whole)
	if err := x.ReadF32(nil, int64(n)); err != nil {
		t.Errorf("%s: reading nothing at the end: %v", x.Name(), err)
	}
	for range 150 {
		first := r.IntN(n)
		length := 1 + r.IntN(n-first)
		if r.IntN(2) == 0 { // often short: within a block, a row, a byte
			length = min(length, 1+r.IntN(9))
		}
		v := slices.Repeat([]float32{float32(math.Inf(-1))}, length)
		if err := x.ReadF32(v, int64(first)); err != nil {
			t.Fatalf("%s: %v", x.Name(), err)
		}
		what := fmt.Sprintf("%s [%d, %d)", x.Name(), first, first+length)
		same(t, what, v, whole[first:first+length])
		b := make([]byte, length*x.Format().Size())
		if err := weights.Read(x, b, int64(first)); err != nil {
			t.Fatalf("%s: %v", x.Name(), err)
		}
		cast.ToF32(v, b, x.Format())
		same(t, what+" in its format", v, whole[first:first+length])
	}
}

func floats(b []byte) []float32 {
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

func floatBytes(v ...float32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

// brain is the upper half of float32: exact for values that are small integers.
func brain(v ...float32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint16(b, uint16(math.Float32bits(x)>>16))
	}
	return b
}

// What transformers and bitsandbytes read, bit for bit, whole and in pieces.
// interop/golden_weights.py writes the file and says what the fields are.
func TestGolden(t *testing.T) {
	f, err := os.Open("testdata/dequantize.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<22)
	seen := map[string]int{}
	r := rand.New(rand.NewPCG(1, 2))
	for lines.Scan() {
		var g struct {
			Scheme  string
			Config  json.RawMessage
			Tensors []formatstest.Tensor
			Name    string
			Shape   []int64
			Values  []byte
		}
		if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
			t.Fatal(err)
		}
		if g.Scheme == "" {
			continue // the versions
		}
		seen[g.Scheme]++
		t.Run(fmt.Sprintf("%s-%d", g.Scheme, seen[g.Scheme]), func(t *testing.T) {
			config := `{"model_type":"llama"}`
			if string(g.Config) != "null" {
				config = `{"model_type":"llama","quantization_config":` + string(g.Config) + `}`
			}
			// Parts may stand before and after the weight.
			r.Shuffle(len(g.Tensors), func(i, j int) { g.Tensors[i], g.Tensors[j] = g.Tensors[j], g.Tensors[i] })
			s := mustOpen(t, config, g.Tensors...)
			if len(s.Tensors()) != 1 {
				t.Fatalf("%d logical tensors, want 1", len(s.Tensors()))
			}
			x := lookup(t, s, g.Name)
			storage := map[string]string{"fp8": "fp8-block"}[g.Scheme]
			if storage == "" {
				storage = g.Scheme
			}
			if x.Storage() != storage || !slices.Equal(x.Shape(), g.Shape) || len(x.Sources()) != len(g.Tensors) {
				t.Errorf("%s %v of %d parts, want %s %v of %d", x.Storage(), x.Shape(), len(x.Sources()), storage, g.Shape, len(g.Tensors))
			}
			scheme := g.Scheme
			if strings.HasPrefix(x.Name(), "m.q_proj") && scheme != "fp8" {
				scheme = "bitsandbytes"
			}
			if s.Scheme() != scheme {
				t.Errorf("scheme %q, want %q", s.Scheme(), scheme)
			}
			want := floats(g.Values)
			same(t, g.Name, read(t, x), want)
			ranges(t, x, want, r)
		})
	}
	if lines.Err() != nil || seen["fp8"] != 5 || seen["mxfp4"] != 2 || seen["nf4"] != 5 || seen["fp4"] != 5 {
		t.Errorf("%v weights, %v; want 5 of fp8, nf4 and fp4, 2 of mxfp4", seen, lines.Err())
	}
}
