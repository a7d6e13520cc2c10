package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// badCase is a command line of verify that must not succeed.
type badCase struct {
	name string
	args []string
}

// badBench makes the files of bad cases.
type badBench struct {
	t                *testing.T
	dir, model, four string
	ids              string
	n                int
	cases            []badCase
}

func (b *badBench) add(name string, args ...string) {
	b.cases = append(b.cases, badCase{name, append([]string{"verify"}, args...)})
}

// file writes a file and returns its name.
func (b *badBench) file(suffix, content string) string {
	b.n++
	path := filepath.Join(b.dir, fmt.Sprintf("%03d%s", b.n, suffix))
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// copyOf is a copy of the candidate in which files were edited; nil: removed.
func (b *badBench) copyOf(edit func(name string, content []byte) []byte) string {
	b.n++
	to := filepath.Join(b.dir, fmt.Sprintf("%03d", b.n))
	if err := os.CopyFS(to, os.DirFS(b.four)); err != nil {
		b.t.Fatal(err)
	}
	entries, err := os.ReadDir(to)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(to, e.Name())
		content, err := os.ReadFile(path)
		if err != nil {
			b.t.Fatal(err)
		}
		if content = edit(e.Name(), content); content == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, content, 0o600)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return to
}

// edited is a copy in which one file was.
func (b *badBench) edited(file string, edit func(content []byte) []byte) string {
	return b.copyOf(func(name string, content []byte) []byte {
		if name == file {
			return edit(content)
		}
		return content
	})
}

func safetensor(header string, data []byte) string {
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header + string(data)
}

// badIDs are files of token ids.
func (b *badBench) badIDs() {
	entry := func(name, dtype, shape string, from, to int) string {
		return fmt.Sprintf(`"%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}`, name, dtype, shape, from, to)
	}
	good := safetensor("{"+entry("input_ids", "I64", "[1,4]", 0, 32)+"}", make([]byte, 32))
	list := map[string]string{
		"empty file": "", "text": "1 2 3", "JSON": "[1,2,3]", "zeros": string(make([]byte, 64)),
		"no tensors": safetensor("{}", nil), "another name": safetensor("{"+entry("ids", "I64", "[1,4]", 0, 32)+"}", make([]byte, 32)),
		"no rows": safetensor("{"+entry("input_ids", "I64", "[0,4]", 0, 0)+"}", nil), "no columns": safetensor("{"+entry("input_ids", "I64", "[4,0]", 0, 0)+"}", nil),
		"one dimension": safetensor("{"+entry("input_ids", "I64", "[4]", 0, 32)+"}", make([]byte, 32)), "three": safetensor("{"+entry("input_ids", "I64", "[1,1,4]", 0, 32)+"}", make([]byte, 32)),
		"negative shape": safetensor("{"+entry("input_ids", "I64", "[-1,4]", 0, 32)+"}", make([]byte, 32)), "huge shape": safetensor("{"+entry("input_ids", "I64", "[4294967296,4294967296]", 0, 32)+"}", make([]byte, 32)),
		"out of the vocabulary": safetensor("{"+entry("input_ids", "I64", "[1,4]", 0, 32)+"}", bytes.Repeat([]byte{0xff, 0xff, 0, 0, 0, 0, 0, 0}, 4)),
		"negative":              safetensor("{"+entry("input_ids", "I64", "[1,4]", 0, 32)+"}", bytes.Repeat([]byte{0xff}, 32)),
		"all masked":            safetensor("{"+entry("input_ids", "I64", "[1,4]", 0, 32)+","+entry("attention_mask", "I64", "[1,4]", 32, 64)+"}", make([]byte, 64)),
		"mask of 2":             safetensor("{"+entry("input_ids", "I64", "[1,1]", 0, 8)+","+entry("attention_mask", "I64", "[1,1]", 8, 16)+"}", []byte{0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}),
		"mask of floats":        safetensor("{"+entry("input_ids", "I64", "[1,1]", 0, 8)+","+entry("attention_mask", "F32", "[1,2]", 8, 16)+"}", make([]byte, 16)),
		"one token":             safetensor("{"+entry("input_ids", "I64", "[1,1]", 0, 8)+"}", make([]byte, 8)), // nothing is scored
		"duplicate":             safetensor("{"+entry("input_ids", "I64", "[1,4]", 0, 32)+","+entry("input_ids", "I64", "[1,4]", 0, 32)+"}", make([]byte, 32)),
		"trailing bytes":        good + "x",
	}
	for _, d := range []string{"F32", "BF16", "U8", "BOOL", "I16", "F8_E4M3", "X"} {
		list["dtype "+d] = safetensor("{"+entry("input_ids", d, "[1,4]", 0, 32)+"}", make([]byte, 32))
	}
	for cut := 1; cut < len(good); cut += len(good)/15 + 1 {
		list[fmt.Sprint("cut at ", cut)] = good[:cut]
	}
	for name, content := range list {
		b.add("ids: "+name, b.model, b.four, "--ids", b.file(".safetensors", content), "--max", "kld.mean=1000")
	}
	b.add("ids: a directory", b.model, b.four, "--ids", b.dir)
	b.add("ids: none", b.model, b.four)
	b.add("ids: -1 sequences", b.model, b.four, "--ids", b.ids, "--sequences", "-1")
}

// badPolicies are policies and gates that judge nothing, or cannot be met.
func (b *badBench) badPolicies() {
	for i, s := range []string{
		"", " ", "{}", "[]", "1", "x", "null", "true", "\x00", "\xff\xfe", "- a", "gates", "gates:", "gates: {}", "gates: []", "gates: 1", "gates: x", "gates: [kld.mean]",
		"name: x", "gates: {kld.mean: }", "gates: {kld.mean: 1}", "gates: {kld.mean: []}", "gates: {kld.mean: {}}", "gates: {kld.mean: {max: }}", "gates: {kld.mean: {max: x}}",
		"gates: {kld.mean: {max: []}}", "gates: {kld.mean: {max: {}}}", "gates: {kld.mean: {max: {warn: x}}}", "gates: {kld.mean: {max: {fail: .nan}}}", "gates: {kld.mean: {max: .nan}}",
		"gates: {kld.mean: {max: .inf}}", "gates: {kld.mean: {max: -.inf}}", "gates: {kld.mean: {max: 1e999}}", "gates: {kld.mean: {max: 1, max: 2}}", "gates: {kld.mean: {max: 1}, kld.mean: {max: 2}}",
		"gates: {kld.mean: {max: 1, sigmas: -1}}", "gates: {kld.mean: {max: 1, sigmas: .nan}}", "gates: {kld.mean: {max: 1, sigmas: 11}}", "gates: {kld.mean: {max: 1, sigmas: x}}",
		"gates: {kld.mean: {maximum: 1}}", "gates: {kld.mean: {max: {warn: 1, fial: 2}}}", "gates: {kld.mean: {max: 1, if_any: 7}}", "gates: {kld: {max: 1}}", "gates: {'': {max: 1}}",
		"gates: {kept.: {max: 1}}", "gates: {kept.expected: {max: 1}}", "gates: {layer.gain: {max: 1}}", "gates: {fourbit: {max: 1}}", "gates: {.: {max: 1}}", "gates: {KLD.MEAN: {max: 1}}",
		"gate: {kld.mean: {max: 1}}", "name: [x]\ngates: {kld.mean: {max: 1}}", "a: &a [*a]", "a: &a\n  b: *a", "<<: 1", "gates: !!binary x", "gates: {? [a, b] : {max: 1}}", "---\n---\n", "{", "}", "gates: {kld.mean: {max: 1}", "\t- x",
		"gates:\n  kld.mean:\n max: 1", strings.Repeat("[", 10000), strings.Repeat("a: ", 1000), "gates: {kld.mean: {max: 1}}\nmore: 1", "x: " + strings.Repeat("y", 1<<20),
	} {
		b.add(fmt.Sprintf("policy %d: %.40q", i, s), b.model, b.four, "--stage", "container", "--policy", b.file(".yaml", s))
	}
	b.add("policy: none", b.model, b.four, "--stage", "container", "--policy", filepath.Join(b.dir, "nosuch.yaml"))
	for _, side := range []string{"--max", "--min"} {
		for _, s := range []string{
			"", "=", "kld.mean", "kld.mean=", "=1", "kld.mean=x", "kld.mean=NaN", "kld.mean=Inf", "kld.mean=-Inf", "kld.mean=1e999", "kld.mean=1=2", "kld.mean= 1", "kld.mean=1,5", " kld.mean=1",
			"kld=1", "kept.=1", "layer.=1", "fourbit.=1", "layer.expected=1", "KLD.MEAN=1", "kld.mean==1", "kld.mean=0x", "kld.mean=1%",
		} {
			b.add(fmt.Sprintf("gate %s %q", side, s), b.model, b.four, "--stage", "container", side, s)
		}
		for _, s := range []string{"kld.mean=1e9", "top1=0", "layer.rel_error=1e9", "ppl.ratio=1e9", "fourbit.gain=1e9", "kept.rel_error=1e9", "weights.rel_error=1e9", "rederive.share=1", "rederive.differences=9", "dp.rms=0"} {
			b.add("not measured "+side+" "+s, b.model, b.four, "--stage", "container", side, s)
		}
	}
	for _, s := range []string{"some", "0", "-1", "1.5", "0.0", "NaN", "101%", "%", "all,all", "1e999%"} {
		b.add("sample "+s, b.model, b.four, "--stage", "rederive", "--rederive", s)
	}
	for _, s := range []string{"all", "weight", ",", "container,", "container weights", "CONTAINER"} {
		b.add("stage "+s, b.model, b.four, "--stage", s)
	}
}

// badManifests are manifests of a candidate that is good.
func (b *badBench) badManifests() {
	whole, err := os.ReadFile(filepath.Join(b.four, "nf4conv.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	texts := map[string]string{"empty": "", "null": "null", "list": "[]", "object": "{}", "number": "7", "options null": strings.Replace(string(whole), `"options": {`, `"options": null, "x": {`, 1)}
	for _, r := range [][2]string{
		{"nf4conv.manifest/1", "nf4conv.manifest/9"}, {`"revision": 1`, `"revision": 9`}, {`"revision": 1`, `"revision": "1"`}, {`"verb": "quantize"`, `"verb": "merge"`},
		{`"verb": "quantize"`, `"verb": "dequantize"`}, {`"verb": "quantize"`, `"verb": ""`}, {`"block_size": 64`, `"block_size": 32`}, {`"block_size": 64`, `"block_size": -64`}, {`"block_size": 64`, `"block_size": 0`},
		{`"block_size": 64`, `"block_size": 1e30`}, {`"double_quant": true`, `"double_quant": false`}, {`"type": "nf4"`, `"type": "fp4"`}, {`"type": "nf4"`, `"type": ""`}, {`"dtype": "auto"`, `"dtype": "int8"`},
		{`"max_shard_size": 5000000000`, `"max_shard_size": 1`}, {`"max_shard_size": 5000000000`, `"max_shard_size": -1`}, {`"op": "quantize"`, `"op": "copy"`}, {`"tensors": [`, `"tensors": [], "x": [`},
		{`"header_blake3": "`, `"header_blake3": "zz`}, {`"size": `, `"size": 1`}, {`"codebooks": {`, `"codebooks": {"int4": "", `}, {`"strict_arch": false`, `"strict_arch": 3`},
	} {
		s := strings.Replace(string(whole), r[0], r[1], 1)
		if s == string(whole) {
			b.t.Errorf("the manifest has no %q", r[0])
		}
		texts[r[0]+" -> "+r[1]] = s
	}
	for cut := 1; cut < len(whole); cut += len(whole) / 12 {
		texts[fmt.Sprint("cut at ", cut)] = string(whole[:cut])
	}
	for name, s := range texts {
		out := b.edited("nf4conv.json", func([]byte) []byte { return []byte(s) })
		b.add("manifest: "+name, b.model, out, "--stage", "rederive", "--rederive", "all")
	}
	b.add("manifest: none", b.model, b.edited("nf4conv.json", func([]byte) []byte { return nil }), "--stage", "rederive", "--rederive", "all")
	b.add("manifest: of nobody", b.model, b.model, "--stage", "rederive", "--rederive", "all")
}

// badCandidates are candidates that are damaged, through containers, weights and bytes.
func (b *badBench) badCandidates() {
	weights, err := os.ReadFile(filepath.Join(b.four, "model.safetensors"))
	if err != nil {
		b.t.Fatal(err)
	}
	bad := func(name, dir string) {
		b.add("candidate: "+name, b.model, dir, "--stage", "container,weights", "--rederive", "all")
	}
	for i := range 12 {
		cut := len(weights) * i / 12
		bad(fmt.Sprint("cut at ", cut), b.edited("model.safetensors", func(w []byte) []byte { return w[:cut] }))
	}
	begin := 8 + int(binary.LittleEndian.Uint64(weights))
	for i := range 24 { // one bit, anywhere in the data
		at := begin + (len(weights)-begin)*i/24
		bad(fmt.Sprint("bit of byte ", at), b.edited("model.safetensors", func(w []byte) []byte { w[at] ^= 1 << (i % 8); return w }))
	}
	for i := range 12 { // NaN, wherever it falls
		at := begin + (len(weights)-begin)*i/12
		bad(fmt.Sprint("NaN at byte ", at), b.edited("model.safetensors", func(w []byte) []byte { copy(w[at:], "\xff\xff\xff\xff"); w[at] ^= 2; return w }))
	}
	for _, r := range [][2]string{{"q_proj", "q_prox"}, {`"U8"`, `"I8"`}, {`"F32"`, `"I32"`}, {"absmax", "absmin"}, {"lm_head", "lm_heap"}, {"norm.weight", "norm.weighs"}} {
		bad("header "+r[0], b.edited("model.safetensors", func(w []byte) []byte {
			return append(bytes.Replace(w[:begin:begin], []byte(r[0]), []byte(r[1]), 1), w[begin:]...)
		}))
	}
	for _, s := range []string{"", "{}", "[]", "x", `{"model_type": "gpt2"}`} {
		bad("config "+s, b.edited("config.json", func([]byte) []byte { return []byte(s) }))
	}
	bad("no weights", b.edited("model.safetensors", func([]byte) []byte { return nil }))
	bad("no config", b.edited("config.json", func([]byte) []byte { return nil }))
	bad("nothing", filepath.Join(b.dir, "nosuch"))
	bad("a file", b.ids)
}

// TestBadVerifications: whatever is wrong with ids, policies, gates, manifests or candidates, verify ends with 2,
// 3 or 4, says why on one line, writes nothing and does not panic.
func TestBadVerifications(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: some hundred processes; run without -short")
	}
	b := &badBench{t: t, dir: t.TempDir()}
	b.model = fixtures.Synthetic(t, filepath.Join(b.dir, "model"), fixtures.Spec{})
	b.four = filepath.Join(b.dir, "four")
	if r := nf4conv(t, "quantize", b.model, b.four, "-q"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	b.ids = b.file(".safetensors", safetensor(`{"input_ids":{"dtype":"I64","shape":[1,4],"data_offsets":[0,32]}}`, make([]byte, 32)))
	if r := nf4conv(t, "verify", b.model, b.four, "--stage", "container,weights", "--rederive", "all"); r.code != 0 {
		t.Fatalf("the good one: %s", r.stderr)
	}
	b.badIDs()
	b.badPolicies()
	b.badManifests()
	b.badCandidates()
	before := snapshot(t, b.dir)
	codes := map[int]int{}
	for _, c := range b.cases {
		r := nf4conv(t, append(c.args, "--progress", "none")...)
		codes[r.code]++
		if r.code != 2 && r.code != 3 && r.code != 4 {
			t.Errorf("%s: exit code %d: %s", c.name, r.code, r.stderr)
		}
		if n := strings.Count(r.stderr, "nf4conv: error: "); n != 1 || strings.Contains(r.stderr, "goroutine ") || strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "internal error") || r.stdout != "" {
			t.Errorf("%s: %d error lines: %s%s", c.name, n, r.stdout, r.stderr)
		}
	}
	if after := snapshot(t, b.dir); after != before {
		t.Error("something was written")
	}
	t.Logf("%d cases, by exit code %v", len(b.cases), codes)
	if len(b.cases) < 200 {
		t.Errorf("%d cases, want 200 and more", len(b.cases))
	}
}

// snapshot is a digest of the names and contents below a directory.
func snapshot(t *testing.T, dir string) treehash.Digest {
	t.Helper()
	var all []byte
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		sum := treehash.Sum(content)
		all = append(append(append(all, path...), 0), sum[:]...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return treehash.Sum(all)
}
