package formatstest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const weights = "model.safetensors"

// bytes adds a case whose model.safetensors has the given content.
func (b *builder) bytes(name string, content []byte, want ...string) {
	b.tb.Helper()
	dir := b.add(name, append([]string{weights}, want...)...)
	b.write(dir, "config.json", []byte(config))
	b.write(dir, weights, content)
}

// truncations cut a file at every place where something ends, and lie about lengths.
func (b *builder) truncations() {
	es, data := llama().entries()
	header := render(es)
	whole := assemble(header, data)
	cut := func(n int) []byte { return whole[:n:n] }
	start := 8 + len(header)
	b.bytes("truncated/empty-file", nil, "0 bytes")
	b.bytes("truncated/half-length", cut(4), "4 bytes")
	b.bytes("truncated/length-only", cut(8), "truncated")
	b.bytes("truncated/first-header-byte", cut(9), "truncated")
	b.bytes("truncated/half-header", cut(8+len(header)/2), "truncated")
	b.bytes("truncated/all-but-one-header-byte", cut(start-1), "truncated")
	b.bytes("truncated/no-data", cut(start), "lm_head.weight", "truncated")
	b.bytes("truncated/within-first-tensor", cut(start+100), "lm_head.weight", "truncated")
	b.bytes("truncated/between-tensors", cut(start+2*vocab*hidden), "model.embed_tokens.weight", "truncated")
	b.bytes("truncated/half-data", cut(start+len(data)/2), "truncated")
	b.bytes("truncated/last-byte", cut(len(whole)-1), "model.norm.weight", "truncated")
	b.bytes("truncated/one-byte-more", append(slices.Clone(whole), 0), fmt.Sprintf("%d bytes of data", len(data)+1))

	lie := func(n uint64) []byte {
		out := slices.Clone(whole)
		binary.LittleEndian.PutUint64(out, n)
		return out
	}
	b.bytes("length/zero", lie(0), "'{'")
	b.bytes("length/one-less", lie(uint64(len(header)-1)), "too early")
	b.bytes("length/into-the-data", lie(uint64(len(header)+1000)), "header")
	b.bytes("length/whole-file", lie(uint64(len(whole))), fmt.Sprintf("%d bytes", len(whole)))
	b.bytes("length/gigabytes", lie(5<<30), "5368709120")
	b.bytes("length/limit", lie(100_000_000), "100000000 bytes")
	b.bytes("length/above-limit", lie(100_000_001), "100000001")
	b.bytes("length/2^63", lie(1<<63), "9223372036854775808")
	b.bytes("length/2^64-1", lie(1<<64-1), "18446744073709551615")
	b.bytes("length/2^63-minus-8", lie(1<<63-8), "9223372036854775800")
}

// headers are files whose header is not the JSON object it must be.
func (b *builder) headers() {
	es, data := llama().entries()
	good := render(es)
	add := func(name, header string, want ...string) {
		b.tb.Helper()
		b.bytes("header/"+name, assemble(header, data), want...)
	}
	add("not-json", "hello, this is no header at all", "'{'")
	add("array", "["+good+"]", "'{'")
	add("null", "null", "'{'")
	add("string", `"`+strings.Repeat("x", 64)+`"`, "'{'")
	add("leading-space", " "+good, "'{'")
	add("byte-order-mark", "\ufeff"+good, "'{'")
	add("trailing-object", good+"{}", "2 bytes")
	add("trailing-letter", good+"x", "1 bytes")
	add("padded-with-zeros", good+"\x00\x00\x00", "3 bytes")
	add("trailing-comma", good[:len(good)-1]+",}", "at byte")
	add("single-quotes", strings.ReplaceAll(good, `"`, "'"), "at byte")
	add("comment", "{/* a comment */"+good[1:], "at byte")
	add("not-utf8", `{"`+"\xff\xfe"+`":{},`+good[1:], "UTF-8")
	add("utf16", "{\x00\"\x00a\x00", "at byte")
	add("missing-colon", strings.Replace(good, `":{"dtype"`, `" {"dtype"`, 1), "at byte")
	add("control-character", strings.Replace(good, "lm_head", "lm\nhead", 1), "at byte")
	add("deep-arrays", `{"a":`+strings.Repeat("[", 50_000)+strings.Repeat("]", 50_000)+"}", `"a"`)
	add("deep-objects", strings.Repeat(`{"a":`, 50_000)+"1"+strings.Repeat("}", 50_000), `"a"`)
	add("duplicate-tensor", render(append(slices.Clone(es), es[0])), "lm_head.weight", "twice")
	add("duplicate-tensor-escaped", good[:len(good)-1]+`,"lm\u005fhead.weight":`+es[0].value+"}", "lm_head.weight", "twice")
	add("duplicate-metadata", `{"__metadata__":{},"__metadata__":{},`+good[1:], "__metadata__", "twice")

	metadata := func(name, value string, want ...string) {
		b.tb.Helper()
		add("metadata-"+name, `{"__metadata__":`+value+","+good[1:], append(want, "__metadata__")...)
	}
	metadata("number", `{"format":1}`, "format")
	metadata("null", `{"format":null}`, "null")
	metadata("nested", `{"format":{"a":"b"}}`, "format")
	metadata("duplicate-key", `{"a":"b","a":"c"}`, `"a"`, "twice")
	dir := b.add("header/metadata-list", weights, "expected a JSON object")
	b.write(dir, "config.json", []byte(config))
	b.write(dir, weights, assemble(`{"__metadata__":["pt"],`+good[1:], data))

	// What downloads leave behind in place of the file.
	b.bytes("header/lfs-pointer", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:"+strings.Repeat("0", 64)+"\nsize 123456\n"), "safetensors")
	b.bytes("header/html", []byte("<!DOCTYPE html><html><body>Access denied</body></html>\n"), "safetensors")
	b.bytes("header/zip", append([]byte("PK\x03\x04\x00\x00\x08\x08"), make([]byte, 4096)...), "safetensors")
	b.bytes("header/zeros", make([]byte, 4096), "'{'")
}
