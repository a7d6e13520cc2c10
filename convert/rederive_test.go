package convert

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
)

func openRederive(t *testing.T, dir string) *hf.Checkpoint {
	t.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// repeat derives out again from src.
func repeat(t *testing.T, src, out string, adapters ...*peft.Adapter) (*Rederived, error) {
	t.Helper()
	c := openRederive(t, out)
	m, err := ReadManifest(c)
	if err != nil {
		return nil, err
	}
	p, err := PlanFromManifest(m, openRederive(t, src), adapters, Resources{})
	if err != nil {
		return nil, err
	}
	return Rederive(context.Background(), p, m, c, nil)
}

// made runs a plan and returns the output.
func made(t *testing.T, p *Plan, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, err := Run(context.Background(), p, RunOptions{Out: out, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	return out
}

// tamper changes bytes of a tensor in the one weight file of a directory.
func tamper(t *testing.T, dir, tensor string, edit func(b []byte)) {
	t.Helper()
	path := filepath.Join(dir, "model.safetensors")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(b)
	var header map[string]struct {
		Offsets [2]uint64 `json:"data_offsets"`
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &raw); err != nil {
		t.Fatal(err)
	}
	delete(raw, "__metadata__")
	again, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &header); err != nil {
		t.Fatal(err)
	}
	h, ok := header[tensor]
	if !ok {
		t.Fatalf("no tensor %q", tensor)
	}
	edit(b[8+n+h.Offsets[0] : 8+n+h.Offsets[1]])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRederive: what every verb wrote is found equal, and one code that is off by one, one bit
// of a scale, of a nested scale, of a quant state, of a kept tensor and of config.json are found.
func TestRederive(t *testing.T) {
	dir := fixtures.Dir(t)
	kjv := filepath.Join(dir, "models", "kjv-llama")
	plain, err := peft.Open(filepath.Join(dir, "adapters", "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	quantize := func() string {
		p, err := Quantize(openRederive(t, kjv), DefaultQuantize())
		return made(t, p, err)
	}
	four := quantize()
	merge := func(quantize bool) string {
		o := DefaultMerge()
		o.Adapters = []MergeAdapter{{Adapter: plain, Weight: 0.75}}
		if quantize {
			q := DefaultQuantize()
			o.Quantize = &q
		}
		p, err := Merge(openRederive(t, kjv), o)
		return made(t, p, err)
	}
	gpt2 := filepath.Join(dir, "arch", "gpt2")
	for _, c := range []struct {
		name, src, out string
		adapters       []*peft.Adapter
	}{
		{"quantize", kjv, four, nil},
		{"quantize Conv1D", gpt2, func() string { p, err := Quantize(openRederive(t, gpt2), DefaultQuantize()); return made(t, p, err) }(), nil},
		{"dequantize", four, func() string {
			p, err := Dequantize(openRederive(t, four), DefaultDequantize())
			return made(t, p, err)
		}(), nil},
		{"merge", kjv, merge(false), []*peft.Adapter{plain}},
		{"merge and quantize", kjv, merge(true), []*peft.Adapter{plain}},
	} {
		d, err := repeat(t, c.src, c.out, c.adapters...)
		if err != nil || len(d.Differences) > 0 || d.Tensors != d.Of || d.Tensors == 0 || d.Bytes == 0 {
			t.Errorf("%s: %+v, %v", c.name, d, err)
		}
	}
	const up = "model.layers.2.mlp.up_proj.weight"
	for _, c := range []struct {
		name, tensor, want string
		element            int64
		edit               func(b []byte)
	}{
		{"a high nibble", up, "code ", 2 * 1000, func(b []byte) { b[1000] = (b[1000]&0xf0+0x10)&0xf0 | b[1000]&15 }},
		{"a low nibble", up, "code ", 2*1000 + 1, func(b []byte) { b[1000] = b[1000]&0xf0 | (b[1000]+1)&15 }},
		{"a code of a scale", up + ".absmax", "bytes ", 7, func(b []byte) { b[7] ^= 1 }},
		{"a nested scale", up + ".nested_absmax", "bytes ", 0, func(b []byte) { b[0] ^= 1 }},
		{"the map", up + ".quant_map", "bytes ", 3, func(b []byte) { b[12] ^= 1 }},
		{"the quant state", up + ".quant_state.bitsandbytes__nf4", "expected", 0, func(b []byte) { copy(b[strings.LastIndex(string(b), "0."):], "0.9") }},
		{"a norm", "model.norm.weight", "bytes ", 5, func(b []byte) { b[10] ^= 1 }},
	} {
		out := quantize()
		tamper(t, out, c.tensor, c.edit)
		d, err := repeat(t, kjv, out)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if len(d.Differences) != 1 || d.Differences[0].Tensor != c.tensor || d.Differences[0].Element != c.element || !strings.Contains(d.Differences[0].Text, c.want) {
			t.Errorf("%s: %+v", c.name, d.Differences)
		}
	}
	out := quantize()
	for _, name := range []string{"config.json", "tokenizer.json"} {
		path := filepath.Join(out, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b = []byte(strings.Replace(strings.Replace(string(b), "1e-05", "1e-04", 1), "BPE", "BPF", 1))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := repeat(t, kjv, out); err != nil || len(d.Differences) != 2 {
		t.Errorf("files: %+v, %v", d, err)
	}
}

// zeroDigest makes the first digest under key, after the last section of a name, zeros.
func zeroDigest(s, section, key string) string {
	at := strings.LastIndex(s, section)
	at += strings.Index(s[at:], key) + len(key)
	return s[:at] + strings.Repeat("0", 64) + s[at+64:]
}

// TestRederiveManifestDigest: a manifest that gives a tensor another digest is a difference.
func TestRederiveManifestDigest(t *testing.T) {
	kjv := filepath.Join(fixtures.Dir(t), "models", "kjv-llama")
	p, err := Quantize(openRederive(t, kjv), DefaultQuantize())
	out := made(t, p, err)
	path := filepath.Join(out, ManifestName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(zeroDigest(string(b), `"outputs"`, `"blake3": "`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := repeat(t, kjv, out); err != nil || len(d.Differences) != 1 || d.Differences[0].File != ManifestName {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestRederiveRefuses: where the manifest or the source is another one nothing is compared.
func TestRederiveRefuses(t *testing.T) {
	kjv := filepath.Join(fixtures.Dir(t), "models", "kjv-llama")
	for _, c := range []struct{ name, old, new, want string }{
		{"schema", "nf4conv.manifest/1", "nf4conv.manifest/2", "schema"},
		{"revision", `"revision": 1`, `"revision": 2`, "revision 2"},
		{"verb", `"verb": "quantize"`, `"verb": "prune"`, `verb "prune"`},
		{"unknown option", `"block_size": 64,`, `"block_size": 64, "rotate": true,`, "unknown field"},
		{"another block size", `"block_size": 64,`, `"block_size": 128,`, "the manifest says of tensor"},
		{"no block size that there is", `"block_size": 64,`, `"block_size": 63,`, "block"},
		{"another type", `"type": "nf4",`, `"type": "int3",`, "int3"},
		{"no digest", `"header_blake3": "`, `"header_blake3": "0000`, "64 hexadecimal digits"},
		{"another source", "", "", "is not the checkpoint"},
		{"no JSON", "{", "[", "no manifest"},
		{"source digest", "", "", "is not the one that the manifest says"},
	} {
		p, err := Quantize(openRederive(t, kjv), DefaultQuantize())
		out := made(t, p, err)
		path := filepath.Join(out, ManifestName)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := strings.Replace(string(b), c.old, c.new, 1)
		switch c.name {
		case "source digest":
			s = zeroDigest(s, `"source"`, `"blake3": "`)
		case "another source":
			s = zeroDigest(s, `"source": {`, `"header_blake3": "`)
		}
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := repeat(t, kjv, out); err == nil || fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", c.name, d, err)
		}
		if c.name == "no JSON" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if _, err := repeat(t, kjv, out); fault.ClassOf(err) != fault.Input {
				t.Errorf("no manifest: %v", err)
			}
		}
	}
}
