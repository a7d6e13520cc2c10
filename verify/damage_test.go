package verify_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

// tensorBytes finds the bytes of a tensor in the text of a safetensors file.
func tensorBytes(t testing.TB, file []byte, name string) []byte {
	t.Helper()
	n := binary.LittleEndian.Uint64(file)
	var header map[string]json.RawMessage
	if err := json.Unmarshal(file[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	var entry struct {
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(header[name], &entry); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return file[8+int(n)+entry.Offsets[0] : 8+int(n)+entry.Offsets[1]]
}

// damaged is a copy of a checkpoint of one file with other bytes.
func damaged(t testing.TB, dir string, edit func(tensor func(string) []byte)) string {
	t.Helper()
	out := t.TempDir()
	for _, f := range []string{"config.json", "model.safetensors"} {
		b, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if f == "model.safetensors" {
			edit(func(name string) []byte { return tensorBytes(t, b, name) })
		}
		if err := os.WriteFile(filepath.Join(out, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func swap(a, b []byte) {
	c := bytes.Clone(a)
	copy(a, b)
	copy(b, c)
}

// TestDamage: the default policy lets an undamaged checkpoint through and names what is
// damaged in others, though the divergence of the model hardly moves.
func TestDamage(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	four := quantized(t, base, func(o *convert.QuantizeOptions) { o.DoubleQuant = false })
	const layer2 = "model.layers.2."
	scaled := func(tensor func(string) []byte) {
		for _, m := range []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} {
			b := tensor(layer2 + m + ".weight.absmax")
			for i := 0; i < len(b); i += 4 {
				binary.LittleEndian.PutUint32(b[i:], math.Float32bits(1.05*math.Float32frombits(binary.LittleEndian.Uint32(b[i:]))))
			}
		}
	}
	for _, c := range []struct {
		name, where, metric string
		edit                func(tensor func(string) []byte)
	}{
		{"undamaged", "", "", func(func(string) []byte) {}},
		{"absmax of one layer times 1.05", layer2, "fourbit.gain", scaled},
		{"two tensors swapped", "model.layers.1.mlp.gate_proj.weight", "fourbit.gain", func(tensor func(string) []byte) {
			for _, s := range []string{"", ".absmax"} {
				swap(tensor("model.layers.1.mlp.gate_proj.weight"+s), tensor("model.layers.1.mlp.up_proj.weight"+s))
			}
		}},
		{"one plane of nibbles flipped", "model.layers.3.self_attn.o_proj.weight", "fourbit.error_ratio", func(tensor func(string) []byte) {
			for i, b := range tensor("model.layers.3.self_attn.o_proj.weight") {
				tensor("model.layers.3.self_attn.o_proj.weight")[i] = b ^ 0x10
			}
		}},
		{"nibbles exchanged", "model.layers.0.mlp.down_proj.weight", "fourbit.error_ratio", func(tensor func(string) []byte) {
			p := tensor("model.layers.0.mlp.down_proj.weight")
			for i, b := range p {
				p[i] = b<<4 | b>>4
			}
		}},
		{"a norm changed", "model.norm.weight", "kept.rel_error", func(tensor func(string) []byte) {
			p := tensor("model.norm.weight")
			p[1] ^= 0x80
		}},
		{"one value of the head is NaN", "lm_head.weight", "kept.rel_error", func(tensor func(string) []byte) {
			p := tensor("lm_head.weight")
			p[0], p[1] = 0xc0, 0x7f
		}},
		{"one scale is infinite", "model.layers.0.mlp.up_proj.weight", "fourbit.gain", func(tensor func(string) []byte) {
			binary.LittleEndian.PutUint32(tensor("model.layers.0.mlp.up_proj.weight.absmax"), math.Float32bits(float32(math.Inf(1))))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name != "undamaged" && c.edit == nil {
				t.Fatal("no damage")
			}
			r := judged(run(t, base, damaged(t, four, c.edit), verify.Options{Text: ids(t, 4)}))
			err := r.Err(false)
			if c.where == "" {
				if err != nil {
					t.Errorf("undamaged: %v", err)
				}
				return
			}
			if err == nil || fault.ClassOf(err) != fault.Gate {
				t.Fatalf("verdict %s, error %v; expected a failure", r.Verdict, err)
			}
			i := slices.IndexFunc(r.Outcomes, func(o verify.Outcome) bool { return o.Gate.Metric == c.metric })
			if o := r.Outcomes[i]; o.Level != verify.Fail || !slices.ContainsFunc(o.Where, func(w string) bool { return strings.HasPrefix(w, c.where) }) {
				t.Errorf("%s: %s %q; expected a failure that names %s", c.metric, o.Level, o.Text, c.where)
			}
			if !strings.Contains(err.Error(), c.where) {
				t.Errorf("error %q does not name %s", err, c.where)
			}
		})
	}
}

// TestArchitectures: every model of the fixtures is verified in its 4-bit form, and against
// itself there is no difference at all.
func TestArchitectures(t *testing.T) {
	for _, name := range []string{"gpt2", "qwen3_moe", "bert", "gemma2"} {
		t.Run(name, func(t *testing.T) {
			base := fixture(t, "arch/"+name)
			text, err := verify.ReadIDs(fixtures.Golden(t, base), 0)
			if err != nil {
				t.Fatal(err)
			}
			four := quantized(t, base, nil)
			r := run(t, base, four, verify.Options{Text: text})
			for _, s := range r.Stages {
				if !s.Ran && s.Name != verify.StageRederive {
					t.Errorf("stage %s did not run: %s", s.Name, s.Why)
				}
			}
			n := 0
			for _, x := range r.Tensors {
				if !x.FourBit {
					continue
				}
				n++
				if !(x.ErrorRatio > 0.99 && x.ErrorRatio < 1.02) || x.Requantize != 0 {
					t.Errorf("%s: relative error %v, expected %v; changes in requantizing %v", x.Name, x.RelError, x.Expected, x.Requantize)
				}
			}
			if n == 0 {
				t.Error("no tensor is 4-bit")
			}
			r = run(t, base, base, verify.Options{Text: text})
			for _, m := range []string{"kld.mean", "kld.max", "hidden.rel_error", "weights.rel_error"} {
				if v, ok := r.Metric(m); !ok || v.Value != 0 {
					t.Errorf("%s against itself: %v", m, v.Value)
				}
			}
			if v, _ := r.Metric("top1"); v.Value != 1 {
				t.Errorf("top1 against itself: %v", v.Value)
			}
		})
	}
}
