package convert

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/weights"
)

// What is not a floating matrix comes through byte for byte: dtypes that nothing here
// computes with or has heard of, scalars, tensors without elements.
func TestOddTensorsAreKept(t *testing.T) {
	odd := []formatstest.Tensor{
		{Name: "model.a", DType: "I64", Shape: []int64{2}, Data: bytes.Repeat([]byte{1, 2}, 8)},
		{Name: "model.b", DType: "BOOL", Shape: []int64{3}, Data: []byte{1, 0, 1}},
		{Name: "model.c", DType: "F64", Shape: []int64{1, 2}, Data: bytes.Repeat([]byte{0xff}, 16)},
		{Name: "model.d", DType: "Q4_K", Shape: []int64{7}, Data: []byte{1, 2, 3, 4, 5}},
		{Name: "model.e", DType: "C64", Shape: []int64{}, Data: []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{Name: "model.f", DType: "BF16", Shape: []int64{}, Data: []byte{0x80, 0x3f}},
		{Name: "model.g", DType: "BF16", Shape: []int64{0, 3}},
		{Name: "model.h", DType: "I32", Shape: []int64{4, 0}},
		{Name: "model.i", DType: "U8", Shape: []int64{5}, Data: []byte("<odd>")},
	}
	dir := small(t)
	src := openSource(t, dir)
	ts := slices.Clone(odd)
	for _, x := range src.Tensors() {
		p := make([]byte, x.Bytes())
		if err := x.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		ts = append(ts, formatstest.Tensor{Name: x.Name, DType: string(x.DType), Shape: x.Shape, Data: p})
	}
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	formatstest.Write(t, dir, string(config), ts...)
	q := mustRun(t, mustPlan(t, dir, DefaultQuantize()), RunOptions{})
	p, err := Dequantize(openSource(t, q), DefaultDequantize())
	if err != nil {
		t.Fatal(err)
	}
	for verb, out := range map[string]string{"quantize": q, "dequantize": mustRun(t, p, RunOptions{})} {
		c := openSource(t, out)
		for _, x := range odd {
			y, ok := c.Lookup(x.Name)
			if !ok {
				t.Errorf("%s: %s is lost", verb, x.Name)
				continue
			}
			got := make([]byte, y.Bytes())
			if err := y.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if string(y.DType) != x.DType || !slices.Equal(y.Shape, x.Shape) || !bytes.Equal(got, x.Data) {
				t.Errorf("%s: %s is %s %v % x, was %s %v % x", verb, x.Name, y.DType, y.Shape, got, x.DType, x.Shape, x.Data)
			}
		}
	}
}

// Layers without features stay as they are; one of a single element does not.
func TestSmallestLayers(t *testing.T) {
	config := `{"architectures":["LlamaForCausalLM"],"model_type":"llama","dtype":"bfloat16","tie_word_embeddings":true}`
	one := binary.LittleEndian.AppendUint16(nil, 0xbf80)
	for _, double := range []bool{false, true} {
		dir := t.TempDir()
		formatstest.Write(t, dir, config, formatstest.Tensor{Name: "model.layers.0.self_attn.o_proj.weight", DType: "BF16", Shape: []int64{1, 1}, Data: one},
			formatstest.Tensor{Name: "model.layers.0.mlp.down_proj.weight", DType: "BF16", Shape: []int64{0, 8}},
			formatstest.Tensor{Name: "model.layers.0.mlp.gate_proj.weight", DType: "BF16", Shape: []int64{8, 0}},
			formatstest.Tensor{Name: "model.layers.0.mlp.up_proj.weight", DType: "BF16", Shape: []int64{8, 0}})
		p, err := Quantize(openSource(t, dir), options(func(o *QuantizeOptions) { o.DoubleQuant = double }))
		if err != nil {
			t.Fatal(err)
		}
		set, err := weights.Open(openSource(t, mustRun(t, p, RunOptions{})))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string][]int64{"self_attn.o_proj": {1, 1}, "mlp.down_proj": {0, 8}, "mlp.gate_proj": {8, 0}, "mlp.up_proj": {8, 0}} {
			x, ok := set.Lookup("model.layers.0." + name + ".weight")
			if !ok || !slices.Equal(x.Shape(), want) {
				t.Errorf("%s: %v, %v; want shape %v", name, x, ok, want)
				continue
			}
			if four := x.Storage() == "nf4"; four != (want[0] == 1) {
				t.Errorf("%s: stored as %s", name, x.Storage())
			}
			v := make([]float32, want[0]*want[1])
			if err := x.ReadF32(v, 0); err != nil || len(v) == 1 && v[0] != -1 {
				t.Errorf("%s: %v, %v", name, v, err)
			}
		}
	}
}
