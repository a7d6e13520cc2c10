package verify_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/verify"
)

// TestMask: attention in blocks costs something against dense attention, and a mask that
// has all blocks nothing.
func TestMask(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	for _, c := range []struct {
		name string
		mask *flash.BlockMask
		same bool
	}{{"all", flash.Local(16, 256, 256, 16), true}, {"local:1", flash.Local(16, 256, 256, 1), false}} {
		r := run(t, base, base, verify.Options{Stages: []string{verify.StageLogits}, Text: ids(t, 2), Mask: c.mask, Attention: c.name})
		kld, _ := r.Metric("kld.mean")
		if r.Text.Attention != c.name || (float64(kld.Value) < 1e-9) != c.same {
			t.Errorf("%s: attention %q, mean divergence %v", c.name, r.Text.Attention, kld.Value)
		}
	}
}

// TestNotRun: forward passes that cannot be computed are said not to have run, with the
// reason, and do not pass.
func TestNotRun(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	out := t.TempDir()
	weights, err := os.ReadFile(filepath.Join(base, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(base, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	config = []byte(strings.Replace(string(config), `"hidden_act": "silu"`, `"hidden_act": "nosuch"`, 1))
	for name, b := range map[string][]byte{"model.safetensors": weights, "config.json": config} {
		if err := os.WriteFile(filepath.Join(out, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []verify.Options{{Text: ids(t, 1)}, {}} {
		r := judged(run(t, base, out, o))
		for _, s := range r.Stages[2:] {
			if s.Ran || s.Why == "" {
				t.Errorf("stage %s: ran %v, %q", s.Name, s.Ran, s.Why)
			}
		}
		if err := r.Err(false); err == nil || fault.ClassOf(err) != fault.Gate {
			t.Errorf("error %v; expected that of a gate", err)
		}
	}
}

// TestReadIDs: what is no matrix of token ids is refused.
func TestReadIDs(t *testing.T) {
	write := func(header string, data int, edit func([]byte)) string {
		b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		b = append(append(b, header...), make([]byte, data)...)
		if edit != nil {
			edit(b[len(b)-data:])
		}
		path := filepath.Join(t.TempDir(), "ids.safetensors")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	entry := func(name, dtype, shape, end string) string {
		return `"` + name + `":{"dtype":"` + dtype + `","shape":` + shape + `,"data_offsets":[` + end + `]}`
	}
	for _, c := range []struct {
		name, path, want string
	}{
		{"another name", write("{"+entry("ids", "I64", "[1,2]", "0,16")+"}", 16, nil), `no tensor "input_ids"`},
		{"floats", write("{"+entry("input_ids", "F32", "[1,4]", "0,16")+"}", 16, nil), "expected I64 or I32"},
		{"one dimension", write("{"+entry("input_ids", "I64", "[2]", "0,16")+"}", 16, nil), "expected I64 or I32"},
		{"empty", write("{"+entry("input_ids", "I64", "[0,2]", "0,0")+"}", 0, nil), "expected I64 or I32"},
		{"negative", write("{"+entry("input_ids", "I32", "[1,4]", "0,16")+"}", 16, func(b []byte) { b[7] = 0x80 }), "input_ids[0, 1] is -2147483648"},
		{"all padding", write("{"+entry("input_ids", "I32", "[1,2]", "0,8")+","+entry("attention_mask", "I32", "[1,2]", "8,16")+"}", 16, nil), "sequence 0 is empty"},
		{"mask of another shape", write("{"+entry("input_ids", "I32", "[1,2]", "0,8")+","+entry("attention_mask", "I32", "[2,1]", "8,16")+"}", 16, nil), "attention_mask has shape"},
	} {
		_, err := verify.ReadIDs(c.path, 0)
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.ClassOf(err) != fault.Input {
			t.Errorf("%s: %v; expected an input error with %q", c.name, err, c.want)
		}
	}
	got, err := verify.ReadIDs(write("{"+entry("input_ids", "I32", "[2,2]", "0,16")+"}", 16, func(b []byte) { b[12] = 7 }), 0)
	if err != nil || got.Tokens != 4 || got.Sequences[1].IDs[1] != 7 {
		t.Errorf("int32: %+v, %v", got, err)
	}
}
