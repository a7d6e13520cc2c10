package nf4_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/kernels/quant4"
	"github.com/nf4conv/nf4conv/nf4"
)

// golden is a line of testdata/quant4.jsonl.zst: what bitsandbytes makes of a generated
// tensor. interop/golden_quant4.py writes it and says what the fields are.
type golden struct {
	Op, Type, DType, Kind string
	Block, N              int
	Seed                  uint64
	Source                string `json:"source_sha256"`
	PackedHash            string `json:"packed_sha256"`
	AbsmaxHash            string `json:"absmax_sha256"`
	DequantizedHash       string `json:"dequantized_sha256"`
	Packed, Absmax        string // base64, of small tensors
	Offset                string
	Codes                 string `json:"codes_sha256"`
	Nested                string
}

// The results of bitsandbytes itself, bit for bit: both types, three dtypes, all block
// sizes, short last blocks, odd lengths, zeros, subnormals, arbitrary bits, ties.
func TestGolden(t *testing.T) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			testGolden(t)
		})
	}
}

func testGolden(t *testing.T) {
	t.Helper()
	f, err := os.Open("testdata/quant4.jsonl.zst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	seen := map[string]int{}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var g golden
		if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
			t.Fatal(err)
		}
		seen[g.Op]++
		switch g.Op {
		case "quant":
			g.checkQuantize(t)
		case "nested":
			g.checkNested(t)
		}
	}
	if lines.Err() != nil || seen["quant"] < 200 || seen["nested"] < 10 {
		t.Errorf("read %v of the golden file: %v", seen, lines.Err())
	}
}

func (g *golden) checkQuantize(t *testing.T) {
	t.Helper()
	typ, err := nf4.Parse(g.Type)
	if err != nil {
		t.Fatal(err)
	}
	dtype := map[string]kernels.Float{"float32": kernels.F32, "bfloat16": kernels.BF16, "float16": kernels.F16}[g.DType]
	src := source(g.Kind, typ, dtype, g.Block, g.N, g.Seed)
	if sum(src) != g.Source {
		t.Fatalf("seed %d: the generators of the test and of the golden file differ", g.Seed)
	}
	packed, absmax := make([]byte, nf4.PackedLen(int64(g.N))), make([]float32, nf4.NumBlocks(int64(g.N), g.Block))
	quant4.Quantize(packed, absmax, src, dtype, g.Block, typ.Codebook())
	dst := make([]byte, len(src))
	quant4.Dequantize(dst, dtype, packed, absmax, g.N, g.Block, typ.Codebook())
	scales := bytesOf(absmax)
	for _, c := range []struct {
		what, want string
		got        []byte
		whole      string
	}{
		{"codes", g.PackedHash, packed, g.Packed}, {"absmax", g.AbsmaxHash, scales, g.Absmax}, {"dequantized", g.DequantizedHash, dst, ""},
	} {
		if sum(c.got) == c.want {
			continue
		}
		want, _ := base64.StdEncoding.DecodeString(c.whole)
		t.Errorf("%s %s %s, %d elements in blocks of %d: %s are not those of bitsandbytes; got %x, want %x", g.Type, g.DType, g.Kind, g.N, g.Block, c.what, c.got[:min(len(c.got), 64)], want[:min(len(want), 64)])
	}
}

func (g *golden) checkNested(t *testing.T) {
	t.Helper()
	absmax := scales(g.N, g.Seed)
	if sum(bytesOf(absmax)) != g.Source {
		t.Fatalf("seed %d: the generators of the test and of the golden file differ", g.Seed)
	}
	offset := doublequant.Offset(absmax)
	codes, nested := make([]byte, g.N), make([]float32, (g.N+255)/256)
	doublequant.Quantize(codes, nested, absmax, offset)
	back := make([]float32, g.N)
	doublequant.Dequantize(back, codes, nested, doublequant.Map(), offset, doublequant.BlockSize)
	want, err := base64.StdEncoding.DecodeString(g.Nested)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(binary.BigEndian.AppendUint32(nil, math.Float32bits(offset))); got != g.Offset {
		t.Errorf("%d scales: offset %s, want %s", g.N, got, g.Offset)
	}
	if sum(codes) != g.Codes || !bytes.Equal(bytesOf(nested), want) || sum(bytesOf(back)) != g.AbsmaxHash {
		t.Errorf("%d scales of seed %d: codes, nested absmax or what is read from them differ", g.N, g.Seed)
	}
}

func sum(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }

func bytesOf(x []float32) []byte {
	b := make([]byte, 4*len(x))
	cast.FromF32(b, x, kernels.F32)
	return b
}

// word is number i of the stream of a seed: splitmix64.
func word(seed uint64, i int) uint64 {
	z := seed<<32 + uint64(i) + 1
	z *= 0x9E3779B97F4A7C15
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// bell is the sum of four 16-bit integers, centred: exact in float32.
func bell(z uint64) float32 {
	s := int64(z&0xffff+z>>16&0xffff+z>>32&0xffff+z>>48) - 131070
	return float32(s) * 0x1p-22
}

// source is the tensor that interop/golden_quant4.py makes under the same name.
func source(kind string, typ nf4.Type, f kernels.Float, block, n int, seed uint64) []byte {
	if kind == "subnormal" || kind == "bits" {
		return bits(kind, f, n, seed)
	}
	levels := slices.Clone(typ.Codebook().Levels[:])
	slices.Sort(levels)
	x := make([]float32, n)
	for i := range x {
		z := word(seed, i)
		x[i] = bell(z)
		switch {
		case kind == "zeros" && i/block%3 == 1:
			x[i] = 0
			if i%2 == 1 {
				x[i] = float32(math.Copysign(0, -1))
			}
		case kind == "ties" && i%block == 0:
			x[i] = 0x1p-5
		case kind == "ties":
			k := z % 15
			v := float32(levels[k]+levels[k+1]) / 2
			if v != 0 {
				v = math.Float32frombits(math.Float32bits(v) + uint32((z>>8)%3) - 1)
			}
			x[i] = v * 0x1p-5
		}
	}
	b := make([]byte, n*f.Size())
	cast.FromF32(b, x, f)
	return b
}

// bits are finite numbers of any magnitude, or subnormal ones.
func bits(kind string, f kernels.Float, n int, seed uint64) []byte {
	fraction := map[kernels.Float]int{kernels.F32: 23, kernels.BF16: 7, kernels.F16: 10}[f]
	exponent := uint64(1)<<(8*f.Size()-1) - 1 - (1<<fraction - 1)
	var b []byte
	for i := range n {
		v := word(seed, i) & (1<<(8*f.Size()) - 1)
		switch {
		case kind == "subnormal":
			v &^= exponent
		case v&exponent == exponent:
			v &^= 1 << fraction
		}
		if f == kernels.F32 {
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		} else {
			b = binary.LittleEndian.AppendUint16(b, uint16(v))
		}
	}
	return b
}

// scales are positive integers over 2^20, or all equal.
func scales(n int, seed uint64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = 0.125
		if seed != 1 && seed != 3 {
			x[i] = float32(word(seed, i)&0xfffff) * 0x1p-20
		}
	}
	return x
}
