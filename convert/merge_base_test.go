package convert

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
)

// A base in FP8 is dequantized on the way: the bytes are those of dequantize, then merge.
func TestMergeIntoFP8(t *testing.T) {
	src := openSource(t, tiny(t, "mistral"))
	r := rand.New(rand.NewPCG(1, 9))
	var ts []formatstest.Tensor
	for _, x := range src.Tensors() {
		d := formatstest.Tensor{Name: x.Name, DType: string(x.DType), Shape: x.Shape, Data: contents(t, x)}
		if x.Name == q0+".weight" {
			d.DType, d.Data = "F8_E4M3", make([]byte, x.Elems())
			for i := range d.Data {
				d.Data[i] = byte(r.Uint32()) & 0xb7 // no NaN
			}
			ts = append(ts, formatstest.Tensor{Name: x.Name + "_scale_inv", DType: "F32", Shape: []int64{1, 1}, Data: []byte{0, 0, 0, 0x3c}})
		}
		ts = append(ts, d)
	}
	dir := t.TempDir()
	config, err := os.ReadFile(filepath.Join(src.Path(), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := hf.ParseConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.Set("quantization_config", []byte(`{"quant_method": "fp8", "weight_block_size": [128, 128]}`))
	formatstest.Write(t, dir, string(cfg.Encode()), ts...)
	a := adapter(t, "", pair(q0, 0.1)...)
	p, err := Dequantize(openSource(t, dir), DefaultDequantize())
	if err != nil {
		t.Fatal(err)
	}
	want, got := merged(t, mustRun(t, p, RunOptions{}), nil, a), merged(t, dir, nil, a)
	for _, x := range want.Tensors() {
		y, ok := got.Lookup(x.Name)
		// One pass rounds the sum alone, two round the weight first.
		if x.Name == q0+".weight" && ok {
			compareULP(t, x.Name, y, x, hf.Tensor{}, 1)
			continue
		}
		if !ok || !bytes.Equal(contents(t, x), contents(t, y)) {
			t.Errorf("%q is not what dequantize, then merge gives", x.Name)
		}
	}
	if _, there := got.Config().Get("quantization_config"); there {
		t.Error("config.json still says that it is quantized")
	}
}

// A convolution: B [out, r, 1, 1] times A [r, in, kh, kw] flattened.
func TestMergeIntoConvolution(t *testing.T) {
	dir := t.TempDir()
	w := values("conv.weight", 1, 6, 4, 3, 2)
	w.Name = "conv.weight"
	formatstest.Write(t, dir, `{"model_type": "layers"}`, w)
	a := values("conv.lora_A.weight", 1, 2, 4, 3, 2)
	b := values("conv.lora_B.weight", 1, 6, 2, 1, 1)
	got := merged(t, dir, nil, adapter(t, "", a, b))
	x, _ := got.Lookup("conv.weight")
	base, _ := openSource(t, dir).Lookup("conv.weight")
	v, from := floats(t, x), floats(t, base)
	fa, fb := decoded(a), decoded(b)
	for o := range 6 {
		for i := range 24 {
			d := float64(fb[2*o])*float64(fa[i]) + float64(fb[2*o+1])*float64(fa[24+i])
			if e := float64(v[24*o+i]) - float64(from[24*o+i]) - d; e > 1e-5 || e < -1e-5 {
				t.Fatalf("element %d, %d: %v, want %v + %v", o, i, v[24*o+i], from[24*o+i], d)
			}
		}
	}
}
