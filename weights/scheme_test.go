package weights_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
	"github.com/nf4conv/nf4conv/weights"
)

// e4m3 is the value of a code by the definition: sign, 4 exponent bits of bias 7, 3 of
// fraction, no infinities.
func e4m3(c byte) float32 {
	exp, frac := int(c>>3&15), float64(c&7)
	v := math.Ldexp(frac/8, -6)
	if exp > 0 {
		v = math.Ldexp(1+frac/8, exp-7)
	}
	if c&0x7f == 0x7f {
		v = math.NaN()
	}
	if c&0x80 != 0 {
		v = math.Copysign(v, -1)
	}
	return float32(v)
}

// Element [r, c] is its code times scale [r/rows, c/cols], the last blocks being short
// where the shape is no multiple of the block (DeepSeek's kv_a_proj has 576 rows).
func TestFP8Blocks(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, c := range []struct {
		rows, cols, br, bc int64
		where, dtype       string
	}{
		{300, 131, 128, 128, "none", "F32"}, {1, 1, 128, 128, "none", "BF16"}, {127, 129, 128, 128, "null", "F32"},
		{13, 29, 4, 7, "top", "F32"}, {13, 29, 7, 4, "top", "BF16"}, {40, 6, 1, 6, "top", "F32"}, {6, 40, 100, 3, "top", "F32"},
		{200, 24, 100, 16, "text", "F32"}, // scales of the same shape as with 128x16 blocks
	} {
		t.Run(fmt.Sprintf("%dx%d-by-%dx%d-%s-%s", c.rows, c.cols, c.br, c.bc, c.where, c.dtype), func(t *testing.T) {
			size := fmt.Sprintf(`"quantization_config":{"quant_method":"fp8","weight_block_size":[%d,%d]}`, c.br, c.bc)
			config := map[string]string{
				"none": "", "null": `{"quantization_config":{"quant_method":"fp8","weight_block_size":null}}`,
				"top": "{" + size + "}", "text": `{"text_config":{` + size + `}}`,
			}[c.where]
			codes := make([]byte, c.rows*c.cols)
			for i := range codes {
				codes[i] = byte(r.Uint32())
			}
			sr, sc := (c.rows+c.br-1)/c.br, (c.cols+c.bc-1)/c.bc
			scales := make([]float32, sr*sc)
			for i := range scales {
				scales[i] = float32(1+r.IntN(255)) / 128 // exact in BF16
			}
			data := floatBytes(scales...)
			if c.dtype == "BF16" {
				data = brain(scales...)
			}
			// Scales before and after their weight, another matrix between.
			s := mustOpen(t, config, formatstest.Tensor{Name: "b_scale_inv", DType: c.dtype, Shape: []int64{sr, sc}, Data: data},
				formatstest.Tensor{Name: "a", DType: "F8_E4M3", Shape: []int64{c.rows, c.cols}, Data: codes}, numbered("norm", 0, 5),
				formatstest.Tensor{Name: "b", DType: "F8_E4M3", Shape: []int64{c.rows, c.cols}, Data: codes},
				formatstest.Tensor{Name: "a_scale_inv", DType: c.dtype, Shape: []int64{sr, sc}, Data: data})
			var names []string
			for _, x := range s.Tensors() {
				names = append(names, x.Name())
			}
			if s.Scheme() != "fp8" || strings.Join(names, " ") != "a norm b" {
				t.Errorf("scheme %q, tensors %q", s.Scheme(), names)
			}
			want := make([]float32, len(codes))
			for i, code := range codes {
				row, col := int64(i)/c.cols, int64(i)%c.cols
				want[i] = e4m3(code) * scales[row/c.br*sc+col/c.bc]
			}
			for _, name := range []string{"a", "b"} {
				x := lookup(t, s, name)
				same(t, name, read(t, x), want)
				ranges(t, x, want, r)
			}
		})
	}
}

func TestPlain(t *testing.T) {
	values := []float32{1, -2, 0.5, 0, 1.5, -0.25}
	half := []byte{0x00, 0x3c, 0x00, 0xc0, 0x00, 0x38, 0, 0, 0x00, 0x3e, 0x00, 0xb4}
	s := mustOpen(t, "", formatstest.Tensor{Name: "f32", DType: "F32", Shape: []int64{2, 3}, Data: floatBytes(values...)},
		formatstest.Tensor{Name: "bf16", DType: "BF16", Shape: []int64{6}, Data: brain(values...)},
		formatstest.Tensor{Name: "f16", DType: "F16", Shape: []int64{3, 2, 1}, Data: half},
		formatstest.Tensor{Name: "empty", DType: "F32", Shape: []int64{0, 3}},
		formatstest.Tensor{Name: "i64", DType: "I64", Shape: []int64{1}, Data: make([]byte, 8)})
	if s.Scheme() != "none" {
		t.Errorf("scheme %q", s.Scheme())
	}
	r := rand.New(rand.NewPCG(9, 9))
	for _, x := range s.Tensors()[:3] {
		same(t, x.Name(), read(t, x), values)
		ranges(t, x, values, r)
		if want := strings.ToUpper(x.Name()); x.Storage() != want || x.Sources()[0].Name != x.Name() {
			t.Errorf("%s: storage %s, sources %v", x.Name(), x.Storage(), x.Sources())
		}
	}
	if err := lookup(t, s, "empty").ReadF32(nil, 0); err != nil {
		t.Error(err)
	}
	err := lookup(t, s, "i64").ReadF32(make([]float32, 1), 0)
	if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "I64") {
		t.Errorf("reading integers as numbers: %v", err)
	}
	if _, ok := s.Lookup("none"); ok {
		t.Error("found what is not there")
	}
}

// Files of which this program would read a part only, or pass on bytes that mean nothing
// without the rest. formatstest has the plain cases; these lie between two schemes.
func TestOpenRefuses(t *testing.T) {
	raw := func(name, dtype string, n int64, shape ...int64) formatstest.Tensor {
		return formatstest.Tensor{Name: name, DType: dtype, Shape: shape, Data: make([]byte, n)}
	}
	scale := raw("w_scale_inv", "F32", 4, 1, 1)
	fp8 := []formatstest.Tensor{raw("v", "F8_E4M3", 4, 2, 2), raw("v_scale_inv", "F32", 4, 1, 1)}
	for name, c := range map[string]struct {
		ts   []formatstest.Tensor
		want string
	}{
		"FP8 kept as U8":      {[]formatstest.Tensor{raw("w", "U8", 4, 2, 2), scale}, `"w_scale_inv": the weight "w" it scales is U8`},
		"scaled already":      {[]formatstest.Tensor{raw("w", "BF16", 8, 2, 2), scale}, `"w_scale_inv": the weight "w" it scales is BF16`},
		"E4M3FNUZ":            {[]formatstest.Tensor{raw("w", "F8_E4M3FNUZ", 4, 2, 2)}, `"w": F8_E4M3FNUZ`},
		"E5M2FNUZ":            {[]formatstest.Tensor{raw("w", "F8_E5M2FNUZ", 4, 2, 2)}, `"w": F8_E5M2FNUZ`},
		"F4":                  {[]formatstest.Tensor{raw("w", "F4", 4, 2, 4)}, `"w": F4`},
		"F6":                  {[]formatstest.Tensor{raw("w", "F6_E2M3", 3, 4)}, `"w": F6_E2M3`},
		"one scale a tensor":  {[]formatstest.Tensor{raw("w", "F8_E4M3", 4, 2, 2), raw("w_scale", "F32", 4)}, `"w": an FP8 weight needs its scales`},
		"scales of exponents": {[]formatstest.Tensor{raw("w", "F8_E4M3", 4, 2, 2), raw("w_scale_inv", "F8_E8M0", 1, 1, 1)}, `F8_E8M0`},
		"empty FP8":           {[]formatstest.Tensor{raw("w", "F8_E4M3", 0, 0, 2), raw("w_scale_inv", "F32", 0, 0, 1)}, `"w": an FP8 weight of shape [0 2]`},
		"signed MXFP4":        {[]formatstest.Tensor{raw("w_blocks", "I8", 16, 1, 1, 1, 16), raw("w_scales", "U8", 1, 1, 1, 1)}, `"w_blocks": dtype I8`},
		"two ways":            {append(fp8, fourBit("w")...), `"v": fp8-block beside bitsandbytes 4-bit`},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := open(t, "", c.ts...)
			if err == nil {
				t.Fatalf("accepted as %q", s.Scheme())
			}
			if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "model.safetensors") {
				t.Errorf("%v; want class input, the file and %s", err, c.want)
			}
		})
	}
}

// fourBit is an NF4 weight of one block.
func fourBit(name string) []formatstest.Tensor {
	q := bnb.QuantState{Type: nf4.NF4, BlockSize: 64, DType: kernels.F32, Shape: []int64{2, 4}}
	state := q.JSON()
	return []formatstest.Tensor{
		{Name: name, DType: "U8", Shape: []int64{4, 1}, Data: []byte{0x01, 0x23, 0x45, 0x67}},
		{Name: name + bnb.AbsmaxSuffix, DType: "F32", Shape: []int64{1}, Data: floatBytes(2)},
		{Name: name + bnb.QuantMapSuffix, DType: "F32", Shape: []int64{16}, Data: floatBytes(nf4.NF4.Codebook().Levels[:]...)},
		{Name: name + bnb.StateSuffix(nf4.NF4), DType: "U8", Shape: []int64{int64(len(state))}, Data: state},
	}
}

// Foreign names what a configuration says, wherever it says it, and what names of tensors
// give away; it keeps silent about what is read.
func TestForeign(t *testing.T) {
	for _, c := range []struct{ config, tensor, want string }{
		{``, "w", ""},
		{`{}`, "w", ""},
		{`{"quantization_config":null}`, "w", ""},
		{`{"quantization_config":{}}`, "w", ""},
		{`{"quantization_config":{"load_in_4bit":true}}`, "w", ""},
		{`{"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,"load_in_8bit":false}}`, "w", ""},
		{`{"quantization_config":{"quant_method":"bitsandbytes_4bit"}}`, "w", ""},
		{`{"quantization_config":{"quant_method":"fp8"}}`, "w", ""},
		{`{"quantization_config":{"quant_method":"mxfp4"}}`, "w", ""},
		{`{"quantization_config":{"load_in_8bit":true}}`, "w", "bitsandbytes 8-bit (LLM.int8)"},
		{`{"quantization_config":{"quant_method":"bitsandbytes_8bit"}}`, "w", "bitsandbytes 8-bit (LLM.int8)"},
		{`{"quantization_config":{"quant_method":"gptq"}}`, "w", "GPTQ"},
		{`{"quantization_config":{"quant_method":"AWQ"}}`, "w", "AWQ"},
		{`{"quantization_config":{"quant_method":"fbgemm_fp8"}}`, "w", "FBGEMM FP8"},
		{`{"quantization_config":{"quant_method":"Zip99"}}`, "w", `a method called "Zip99"`},
		{`{"text_config":{"quantization_config":{"quant_method":"compressed-tensors"}}}`, "w", "compressed-tensors"},
		{`{"compression_config":{"format":"dense"}}`, "w", "compressed-tensors"},
		{`{"compression_config":null}`, "w", ""},
		{`{"quantization_config":{"quant_method":null}}`, "w", ""},
		{`{"quantization_config":{"quant_method":5}}`, "w", "a method called 5"},
		{`{"quantization_config":{"quant_method":"fp8"},"text_config":{"quantization_config":{"quant_method":"hqq"}}}`, "w", "HQQ"},
		{``, "a.qweight", `GPTQ or AWQ (it has a tensor "a.qweight")`},
		{`{}`, "a.qzeros", `GPTQ or AWQ (it has a tensor "a.qzeros")`},
		{``, "a.SCB", `bitsandbytes 8-bit (it has a tensor "a.SCB")`},
		{``, "a.weight._data", `quanto (it has a tensor "a.weight._data")`},
		{``, "a.scb", ""},
		{``, "qweight", ""},
	} {
		dir := t.TempDir()
		formatstest.Write(t, dir, c.config, numbered("first", 0, 2), numbered(c.tensor, 0, 2))
		src, err := hf.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := weights.Foreign(src); got != c.want {
			t.Errorf("%s with %q: %q, want %q", c.config, c.tensor, got, c.want)
		}
		err = weights.CheckScheme(src)
		if (err != nil) != (c.want != "") || err != nil && (fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) || len(fault.Hints(err)) != 1) {
			t.Errorf("%s with %q: refused by %v, want %q", c.config, c.tensor, err, c.want)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
}
