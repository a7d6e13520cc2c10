package convert

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
)

// poke writes a 16-bit pattern into element i of a tensor of a single-file checkpoint.
func poke(t *testing.T, dir, tensor string, i int64, bits uint16) {
	t.Helper()
	x, ok := openSource(t, dir).Lookup(tensor)
	if !ok {
		t.Fatalf("no tensor %q", tensor)
	}
	header := x.File.Header()
	path := filepath.Join(dir, "model.safetensors")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint16(nil, bits), header.DataStart+x.Begin+2*i); err != nil {
		t.Fatal(err)
	}
}

// A value that is not finite is named by file, tensor and coordinates in the source's own
// shape, wherever it stands: first and last element, in the second chunk, transposed.
func TestNonFinite(t *testing.T) {
	const nan, inf, minusInf = 0x7fc0, 0x7f80, 0xff80
	big := fixtures.Spec{Hidden: 512, Intermediate: 1376, Vocab: 64, Layers: 1, Seed: 1}
	conv := big
	conv.Arch = "gpt2"
	for _, c := range []struct {
		name, tensor string
		spec         fixtures.Spec
		shape        [2]int64
		row, col     int64
		bits         uint16
		want         string
	}{
		{"first", "model.layers.0.mlp.up_proj.weight", big, [2]int64{1376, 512}, 0, 0, nan, "[0 0] is NaN"},
		{"last", "model.layers.0.mlp.up_proj.weight", big, [2]int64{1376, 512}, 1375, 511, inf, "[1375 511] is infinity"},
		{"second chunk", "model.layers.0.mlp.up_proj.weight", big, [2]int64{1376, 512}, 1030, 1, minusInf, "[1030 1] is -infinity"},
		{"embedding", "model.embed_tokens.weight", big, [2]int64{64, 512}, 3, 4, nan, "[3 4] is NaN"},
		{"transposed", "transformer.h.0.mlp.c_fc.weight", conv, [2]int64{512, 2048}, 7, 1999, nan, "[7 1999] is NaN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "s"), c.spec)
			poke(t, src, c.tensor, c.row*c.shape[1]+c.col, c.bits)
			out := filepath.Join(t.TempDir(), "out")
			_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
			if fault.ClassOf(err) != fault.Input {
				t.Fatalf("error %v, want class input", err)
			}
			for _, want := range []string{c.want, fmt.Sprintf("%q", c.tensor), "model.safetensors"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the message lacks %q: %v", want, err)
				}
			}
			if _, err := os.Lstat(out); err == nil {
				t.Error("something stands under the final name")
			}
		})
	}
}

// withDType changes every place that names a dtype, and nothing else.
func TestConfigNamesTheDType(t *testing.T) {
	src := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "s"), fixtures.Spec{})
	config := `{"architectures":["LlamaForCausalLM"],"model_type":"llama","torch_dtype":"float32","rms_norm_eps":1e-05,
	  "text_config":{"dtype":"float32","x":1.50},"vision_config":{"torch_dtype":"float32","dtype":null},"other_config":3,"tie_word_embeddings":false}`
	if err := os.WriteFile(filepath.Join(src, "config.json"), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	cfg := withDType(openSource(t, src).Config(), kernels.BF16)
	text := strings.Join(strings.Fields(string(cfg.Encode())), "")
	want := `{"architectures":["LlamaForCausalLM"],"model_type":"llama","torch_dtype":"bfloat16","rms_norm_eps":1e-05,` +
		`"text_config":{"dtype":"bfloat16","x":1.50},"vision_config":{"torch_dtype":"bfloat16","dtype":null},"other_config":3,"tie_word_embeddings":false}`
	if text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

// Whatever is not quantized keeps its bytes, or is cast to the dtype of the checkpoint.
func TestKeptTensors(t *testing.T) {
	for _, dtype := range []string{"auto", "float16", "bfloat16"} {
		for _, dir := range fixtures.Models(t) {
			src := openSource(t, dir)
			p, err := Quantize(src, options(func(o *QuantizeOptions) { o.DType = dtype }))
			if err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
			out := openSource(t, mustRun(t, p, RunOptions{}))
			want, _ := parseFloat(p.Model.DType)
			for i := range p.Jobs {
				j := &p.Jobs[i]
				if j.Quantized() {
					continue
				}
				a, _ := src.Lookup(j.Name)
				b, ok := out.Lookup(j.Name)
				if !ok {
					t.Errorf("%s: %s is lost", dir, j.Name)
					continue
				}
				x, y := make([]byte, a.Bytes()), make([]byte, b.Bytes())
				if a.ReadAt(x, 0) != nil || b.ReadAt(y, 0) != nil {
					t.Fatal("reading")
				}
				if a.DType == b.DType && string(x) != string(y) {
					t.Errorf("%s: %s has other bytes", dir, j.Name)
				}
				if f, isFloat := b.DType.Float(); isFloat && f != want && f != kernels.F32 {
					t.Errorf("%s: %s is %s, want %v", dir, j.Name, b.DType, want)
				}
			}
		}
	}
}
