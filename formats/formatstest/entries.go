package formatstest

import (
	"fmt"
	"slices"
	"strings"
)

// entries are headers in which one entry is wrong, that of the first tensor unless a
// name says otherwise.
func (b *builder) entries() {
	m := llama()
	es, data := m.entries()
	add := func(name string, es []entry, want ...string) {
		b.tb.Helper()
		b.bytes("entry/"+name, assemble(render(es), data), want...)
	}
	// first replaces the first entry: 1024 bytes of BF16 [16, 32].
	const name = "lm_head.weight"
	size := len(m.tensors[0].data)
	first := func(title, value string, want ...string) {
		b.tb.Helper()
		out := slices.Clone(es)
		out[0].value = value
		add(title, out, append(want, name)...)
	}
	with := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"dtype":%s,"shape":%s,"data_offsets":%s}`, dtype, shape, offsets)
	}
	const bf16, shape = `"BF16"`, "[16,32]"
	offsets := fmt.Sprintf("[0,%d]", size)

	first("number", "1", "expected a JSON object")
	first("list", "[]", "expected a JSON object")
	first("null", "null", "expected a JSON object")
	first("empty", "{}", "missing")
	first("no-dtype", fmt.Sprintf(`{"shape":%s,"data_offsets":%s}`, shape, offsets), "dtype is missing")
	first("no-shape", fmt.Sprintf(`{"dtype":%s,"data_offsets":%s}`, bf16, offsets), "shape is missing")
	first("no-offsets", fmt.Sprintf(`{"dtype":%s,"shape":%s}`, bf16, shape), "data_offsets is missing")
	first("unknown-key", fmt.Sprintf(`{"dtype":%s,"shape":%s,"data_offsets":%s,"strides":[32,1]}`, bf16, shape, offsets), `"strides"`)
	first("key-case", fmt.Sprintf(`{"DType":%s,"shape":%s,"data_offsets":%s}`, bf16, shape, offsets), `"DType"`)
	first("duplicate-dtype", fmt.Sprintf(`{"dtype":%s,"dtype":%[1]s,"shape":%s,"data_offsets":%s}`, bf16, shape, offsets), "dtype", "twice")
	first("duplicate-shape", fmt.Sprintf(`{"dtype":%s,"shape":%s,"shape":%[2]s,"data_offsets":%s}`, bf16, shape, offsets), "shape", "twice")
	first("duplicate-offsets", fmt.Sprintf(`{"dtype":%s,"shape":%s,"data_offsets":%s,"data_offsets":%[3]s}`, bf16, shape, offsets), "data_offsets", "twice")

	first("dtype-number", with("16", shape, offsets), "dtype: expected a string")
	first("dtype-null", with("null", shape, offsets), "dtype: expected a string")
	first("dtype-list", with(`["BF16"]`, shape, offsets), "dtype: expected a string")
	first("dtype-empty", with(`""`, shape, offsets), "dtype: expected a string")
	first("dtype-too-wide", with(`"F32"`, shape, offsets), "2048 bytes", "1024")
	first("dtype-too-narrow", with(`"U8"`, shape, offsets), "512 bytes", "1024")

	for _, c := range []struct{ name, value, want string }{
		{"string", `"16,32"`, "expected an array"},
		{"object", `{"0":16,"1":32}`, "expected an array"},
		{"number", "512", "expected an array"},
		{"null", "null", "expected an array"},
		{"of-strings", `["16","32"]`, "expected a non-negative integer"},
		{"of-lists", "[[16],[32]]", "expected a non-negative integer"},
		{"with-null", "[16,null]", "found null"},
		{"negative", "[-16,-32]", "-16"},
		{"minus-zero", "[-0,32]", "-0"},
		{"float", "[16.0,32.0]", "16.0"},
		{"exponent", "[16,3.2e1]", "3.2e1"},
		{"2^63", "[9223372036854775808,32]", "9223372036854775808"},
		{"2^64", "[18446744073709551616,32]", "18446744073709551616"},
		{"huge", "[1" + strings.Repeat("0", 300) + "]", "0 to 2^63-1"},
		{"product-overflow", "[4294967296,4294967296,16]", "2^63"},
		// 2^62 * 4 is 0 modulo 2^64, and 0 elements would need 0 bytes.
		{"product-wraps-to-0", "[4611686018427387904,4]", "2^63"},
		{"bits-overflow", "[1152921504606846976]", "2^63"},
		{"too-many-dimensions", "[" + strings.Repeat("1,", 100) + "512]", "64"},
		{"too-small", "[16,31]", "992 bytes"},
		{"too-large", "[16,33]", "1056 bytes"},
		{"zero", "[0,32]", "0 bytes"},
		{"scalar", "[]", "2 bytes"},
	} {
		first("shape-"+c.name, with(bf16, c.value, offsets), "shape", c.want)
	}
	for _, c := range []struct{ name, value, want string }{
		{"string", `"0,1024"`, "expected an array"},
		{"object", `{"begin":0,"end":1024}`, "expected an array"},
		{"null", "null", "expected an array"},
		{"of-strings", `["0","1024"]`, "expected a non-negative integer"},
		{"none", "[]", "expected 2 integers, found 0"},
		{"one", "[0]", "expected 2 integers, found 1"},
		{"three", "[0,512,1024]", "expected 2 integers, found 3"},
		{"float", "[0,1024.0]", "1024.0"},
		{"negative", "[-1024,0]", "-1024"},
		{"minus-zero", "[-0,1024]", "-0"},
		{"2^63", "[0,9223372036854775808]", "9223372036854775808"},
		{"2^64-wraps", "[18446744073709551615,1023]", "18446744073709551615"},
		{"reversed", "[1024,0]", "backwards"},
		{"odd-length", "[0,1023]", "1023"},
		{"short", "[0,1022]", "1022"},
	} {
		first("offsets-"+c.name, with(bf16, shape, c.value), c.want)
	}
	far := slices.Clone(es)
	far[0].value = with(bf16, shape, "[9223372036854774783,9223372036854775807]")
	add("offsets-far-past-the-end", far, "model.embed_tokens.weight", "begins at 1024")
	b.layouts(m)
	b.bytes("entry/half-a-byte", assemble(`{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}`, []byte{0}), `"a"`, "whole number of bytes")
	b.bytes("entry/no-tensors", assemble("{}", data), "bytes of data")
}

// layouts are sets of entries that are right one by one and do not tile the data.
func (b *builder) layouts(m *model) {
	_, data := m.entries()
	// place renders the model with the k-th tensor at the given offset.
	place := func(shift func(k, begin int) int) string {
		var es []entry
		at := 0
		for k := range m.tensors {
			t := &m.tensors[k]
			begin := shift(k, at)
			es = append(es, entry{t.name, t.value(begin, begin+len(t.data))})
			at += len(t.data)
		}
		return render(es)
	}
	add := func(name, header string, data []byte, want ...string) {
		b.tb.Helper()
		b.bytes("layout/"+name, assemble(header, data), want...)
	}
	moved := func(by int) string { return place(func(_, at int) int { return at + by }) }
	longer := append(slices.Clone(data), make([]byte, 64)...)
	add("not-at-zero", moved(64), longer, "lm_head.weight", "begins at 64")
	add("not-covering", moved(0), longer, fmt.Sprint(len(longer)), "cover", fmt.Sprint(len(data)))
	add("past-the-end", moved(0), data[:len(data)-64], "model.norm.weight", "truncated")
	add("gap", place(func(k, at int) int { return at + 64*min(k/5, 1) }), longer, "mlp.up_proj", "64 bytes before it")
	add("overlap", place(func(k, at int) int { return at - 2*min(k/5, 1) }), data, "mlp.up_proj", "within")
	add("same-bytes", place(func(k, at int) int {
		if k == 1 {
			return 0
		}
		return at
	}), data, "lm_head.weight", "model.embed_tokens.weight")
	add("contained", strings.Replace(moved(0), "}}", fmt.Sprintf(`},"x":%s}`, (&tensor{dtype: "U8", shape: []int64{4}}).value(100, 104)), 1), data, `"x"`, "within")
	add("last-beyond-2^63", strings.Replace(moved(0), "}}", `},"x":{"dtype":"weird","shape":[1],"data_offsets":[9223372036854775806,9223372036854775807]}}`, 1), data, `"x"`)
}
