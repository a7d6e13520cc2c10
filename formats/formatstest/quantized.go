package formatstest

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// fourBit is the model with q_proj in NF4 blocks of 64, without double quantization.
func fourBit() *model {
	m := llama()
	q := bnb.QuantState{Type: nf4.NF4, BlockSize: 64, DType: kernels.BF16, Shape: []int64{hidden, hidden}}
	t := m.tensor(qProj)
	n := int64(hidden * hidden)
	*t = tensor{qProj, "U8", []int64{n / 2, 1}, bytes.Repeat([]byte{0x5a}, int(n/2))}
	nb := nf4.NumBlocks(n, 64)
	var absmax, book []byte
	for i := range nb {
		absmax = binary.LittleEndian.AppendUint32(absmax, math.Float32bits(1+float32(i)/16))
	}
	for _, l := range nf4.NF4.Codebook().Levels {
		book = binary.LittleEndian.AppendUint32(book, math.Float32bits(l))
	}
	state := q.JSON()
	m.tensors = append(m.tensors,
		tensor{qProj + bnb.AbsmaxSuffix, "F32", []int64{nb}, absmax},
		tensor{qProj + bnb.QuantMapSuffix, "F32", []int64{16}, book},
		tensor{qProj + bnb.StateSuffix(nf4.NF4), "U8", []int64{int64(len(state))}, state})
	m.config = withKey(`"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4"}`)
	return m
}

// fp8 is the model with q_proj in FP8 with one scale for blocks of 16 x 8.
func fp8() *model {
	m := llama()
	data := make([]byte, hidden*hidden)
	for i := range data {
		data[i] = byte(i % 0x78) // below NaN, which is 0x7f
	}
	*m.tensor(qProj) = tensor{qProj, "F8_E4M3", []int64{hidden, hidden}, data}
	var scales []byte
	for i := range 8 {
		scales = binary.LittleEndian.AppendUint32(scales, math.Float32bits(float32(i+1)/8))
	}
	m.tensors = append(m.tensors, tensor{qProj + "_scale_inv", "F32", []int64{2, 4}, scales})
	m.config = withKey(`"quantization_config":{"quant_method":"fp8","weight_block_size":[16,8]}`)
	return m
}

// mxfp4 is the model with q_proj's place taken by a stack of experts in MXFP4, which is
// enough for readers of tensors, though no Llama.
func mxfp4() *model {
	m := llama()
	const name = "model.layers.0.mlp.experts.down_proj"
	m.tensors = append(m.tensors,
		tensor{name + "_blocks", "U8", []int64{2, 4, 2, 16}, bytes.Repeat([]byte{0x21}, 2*4*2*16)},
		tensor{name + "_scales", "U8", []int64{2, 4, 2}, bytes.Repeat([]byte{127}, 2*4*2)})
	m.config = withKey(`"quantization_config":{"quant_method":"mxfp4"}`)
	return m
}

// withKey is the configuration with one key more.
func withKey(text string) string {
	return strings.TrimSuffix(strings.TrimSpace(config), "}") + "," + text + "}"
}

// valid are the flawless checkpoints.
func (b *builder) valid() {
	b.model(b.add("valid/plain"), llama())
	b.model(b.add("valid/fp8"), fp8())
	b.model(b.add("valid/fourbit"), fourBit())
	b.last().Flags = []string{"-"}
	b.model(b.add("valid/mxfp4"), mxfp4())
	b.last().Flags = []string{"-"}
	tied := llama()
	tied.remove("lm_head.weight")
	tied.config = strings.Replace(config, "false", "true", 1)
	b.model(b.add("valid/tied"), tied)

	infinite := llama()
	infinite.config = withKey(`"time_step_limit":[0.0,Infinity],"a":NaN,"b":-Infinity`)
	b.model(b.add("valid/infinity"), infinite)

	one, two, weightMap := shards()
	dir := b.add("valid/sharded")
	b.write(dir, "config.json", []byte(config))
	b.write(dir, shard1, one.file())
	b.write(dir, shard2, two.file())
	b.write(dir, indexName, index(weightMap))
	dir = b.add("valid/by-hand") // the header that malformed ones are made from
	b.write(dir, "config.json", []byte(config))
	es, data := llama().entries()
	b.write(dir, weights, assemble(render(es), data))
}

// quantized are checkpoints of schemes that are not read, and broken ones of those that are.
func (b *builder) quantized() {
	const unread = "does not read"
	for _, s := range []struct{ name, config, want string }{
		{"gptq", `{"quant_method":"gptq","bits":4}`, "GPTQ"},
		{"awq", `{"quant_method":"awq","bits":4}`, "AWQ"},
		{"8bit", `{"quant_method":"bitsandbytes","load_in_8bit":true}`, "8-bit"},
		{"compressed-tensors", `{"quant_method":"compressed-tensors"}`, "compressed-tensors"},
		{"hqq", `{"quant_method":"hqq"}`, "HQQ"},
		{"unheard-of", `{"quant_method":"zip99"}`, "zip99"},
	} {
		m := llama()
		m.config = withKey(`"quantization_config":` + s.config)
		b.model(b.add("scheme/"+s.name+"-by-config", s.name, s.want, unread), m)
	}
	for _, s := range []struct{ name, tensor, want string }{
		{"gptq", "q_proj.qweight", "GPTQ"}, {"gptq-order", "q_proj.g_idx", "GPTQ"}, {"8bit", "q_proj.SCB", "8-bit"},
		{"compressed-tensors", "q_proj.weight_packed", "compressed-tensors"}, {"nvfp4", "q_proj.weight_scale_2", "NVFP4"},
	} {
		m := llama()
		m.tensors = append(m.tensors, tensor{"model.layers.0.self_attn." + s.tensor, "I32", []int64{4}, make([]byte, 16)})
		b.model(b.add("scheme/"+s.name+"-by-tensor", s.name, s.want, s.tensor, unread), m)
	}
	add := func(name string, m *model, want ...string) {
		b.tb.Helper()
		b.model(b.add(name, append([]string{weights}, want...)...), m)
	}
	b.brokenFP8(add)
	b.brokenMXFP4(add)
	b.brokenFourBit(add)
}

func (b *builder) brokenFP8(add func(string, *model, ...string)) {
	edit := func(name string, change func(m *model, scale *tensor), want ...string) {
		m := fp8()
		change(m, m.tensor(qProj+"_scale_inv"))
		add("fp8/"+name, m, append(want, qProj)...)
	}
	edit("no-scales", func(m *model, s *tensor) { m.remove(s.name) }, "missing")
	edit("no-weight", func(m *model, _ *tensor) { m.remove(qProj) }, "missing")
	edit("scale-shape", func(_ *model, s *tensor) { s.shape, s.data = []int64{2, 3}, s.data[:24] }, "[2 3]", "[2 4]")
	edit("scale-flat", func(_ *model, s *tensor) { s.shape = []int64{8} }, "[8]", "[2 4]")
	edit("scale-dtype", func(_ *model, s *tensor) { s.dtype = "I32" }, "I32")
	edit("vector", func(m *model, _ *tensor) { m.tensor(qProj).shape = []int64{hidden * hidden} }, "expected a matrix")
	edit("e5m2", func(m *model, _ *tensor) { m.tensor(qProj).dtype = "F8_E5M2" }, "e5m2")
	for name, size := range map[string]string{"zero": "[0,8]", "negative": "[-16,8]", "one": "[16]", "string": `"16x8"`, "float": "[16.5,8]"} {
		m := fp8()
		m.config = strings.Replace(m.config, "[16,8]", size, 1)
		b.model(b.add("fp8/block-size-"+name, "config.json", "weight_block_size"), m)
	}
}

func (b *builder) brokenMXFP4(add func(string, *model, ...string)) {
	const name = "model.layers.0.mlp.experts.down_proj"
	edit := func(title string, change func(m *model, blocks, scales *tensor), want ...string) {
		m := mxfp4()
		change(m, m.tensor(name+"_blocks"), m.tensor(name+"_scales"))
		add("mxfp4/"+title, m, append(want, name)...)
	}
	edit("no-scales", func(m *model, _, s *tensor) { m.remove(s.name) }, "missing")
	edit("no-blocks", func(m *model, bl, _ *tensor) { m.remove(bl.name) }, "missing")
	edit("blocks-shape", func(_ *model, bl, _ *tensor) { bl.shape = []int64{2, 4, 4, 8} }, "[2 4 4 8]")
	edit("blocks-flat", func(_ *model, bl, _ *tensor) { bl.shape = []int64{256} }, "[256]")
	edit("scales-shape", func(_ *model, _, s *tensor) { s.shape = []int64{2, 2, 4} }, "[2 2 4]")
	edit("scales-dtype", func(_ *model, _, s *tensor) { s.dtype = "I8" }, "I8")
	edit("in-two-forms", func(m *model, _, _ *tensor) {
		m.tensors = append(m.tensors, tensor{name, "BF16", []int64{2, 64, 4}, make([]byte, 1024)})
	}, "twice")
	b.last().Want[0] = "in-two-forms" // the forms may stand in two files
}

func (b *builder) brokenFourBit(add func(string, *model, ...string)) {
	state := qProj + bnb.StateSuffix(nf4.NF4)
	edit := func(name string, change func(m *model), want ...string) {
		m := fourBit()
		change(m)
		add("fourbit/"+name, m, append(want, qProj)...)
	}
	// without takes a part away; as gives the state another text.
	without := func(name string) func(*model) { return func(m *model) { m.remove(name) } }
	as := func(text string) func(*model) {
		return func(m *model) {
			t := m.tensor(state)
			t.data, t.shape = []byte(text), []int64{int64(len(text))}
		}
	}
	good := string(fourBit().tensor(state).data)
	instead := func(old, text string) func(*model) {
		if !strings.Contains(good, old) {
			panic("formatstest: internal error: no " + old)
		}
		return as(strings.Replace(good, old, text, 1))
	}
	edit("no-absmax", without(qProj+".absmax"), ".absmax", "missing")
	edit("no-quant_map", without(qProj+".quant_map"), ".quant_map", "missing")
	edit("no-state", without(state), "no quant state")
	edit("no-weight", without(qProj), "missing")
	edit("state-empty", as(""), "quant state")
	edit("state-not-json", as("nf4, blocksize 64"), "quant state")
	edit("state-array", as("["+good+"]"), "quant state")
	edit("state-null", as("null"), "quant state")
	edit("state-truncated", as(good[:40]), "quant state")
	edit("state-trailing", as(good+"x"), "quant state", "follows")
	edit("state-extra-key", instead("{", `{"version": 2, `), "version")
	edit("state-key-case", instead("blocksize", "BlockSize"), "BlockSize")
	edit("state-duplicate-key", instead("{", `{"blocksize": 128, `), "blocksize", "twice")
	edit("state-missing-key", instead(`"blocksize": 64, `, ""), "blocksize")
	edit("state-null-key", instead("64", "null"), "blocksize")
	edit("state-not-utf8", instead("nf4", "nf4\xff"), "quant state")
	edit("state-huge", as(good+strings.Repeat(" ", 1<<17)), "too many")
	edit("type-unknown", instead("nf4", "nf3"), "nf3")
	edit("type-other", instead("nf4", "fp4"), "fp4")
	edit("type-number", instead(`"nf4"`, "4"), "quant_type")
	edit("suffix-unknown", func(m *model) { m.tensor(state).name = qProj + ".quant_state.bitsandbytes__nf3" }, "nf3")
	edit("two-states", func(m *model) {
		t := *m.tensor(state)
		t.name = qProj + bnb.StateSuffix(nf4.FP4)
		m.tensors = append(m.tensors, t)
	}, "second")
	edit("blocksize-odd", instead("64", "63"), "blocksize")
	edit("blocksize-zero", instead("64", "0"), "blocksize")
	edit("blocksize-other", instead("64", "128"), ".absmax", "8 elements")
	edit("blocksize-float", instead("64", "64.5"), "blocksize")
	edit("dtype-unknown", instead("bfloat16", "float8"), "float8")
	edit("shape-other", instead("[32, 32]", "[32, 33]"), "[32 33]")
	edit("shape-negative", instead("[32, 32]", "[-32, -32]"), "negative")
	edit("shape-null", instead("[32, 32]", "[32, null]"), "shape")
	edit("shape-huge", instead("[32, 32]", "[4294967296, 4294967296]"), "too large")
	edit("shape-wraps", instead("[32, 32]", "[4611686018427387904, 4, 32]"), "too large")
	edit("absmax-short", func(m *model) { t := m.tensor(qProj + ".absmax"); t.shape[0]--; t.data = t.data[4:] }, "16 elements")
	edit("absmax-dtype", func(m *model) { t := m.tensor(qProj + ".absmax"); t.dtype, t.shape = "U8", []int64{64} }, "U8")
	edit("map-changed", func(m *model) { m.tensor(qProj + ".quant_map").data[8] ^= 1 }, "code book")
	edit("map-of-fp4", func(m *model) {
		var book []byte
		for _, l := range nf4.FP4.Codebook().Levels {
			book = binary.LittleEndian.AppendUint32(book, math.Float32bits(l))
		}
		m.tensor(qProj + ".quant_map").data = book
	}, "code book")
	edit("map-short", func(m *model) { t := m.tensor(qProj + ".quant_map"); t.shape[0] = 15; t.data = t.data[:60] }, "16 elements")
	nested := `, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.5}`
	edit("nested-without-parts", instead("}", nested), "U8")
	edit("nested-half", instead("}", `, "nested_blocksize": 256}`), "some are missing")
	edit("nested-stray", func(m *model) {
		m.tensors = append(m.tensors, tensor{qProj + ".nested_absmax", "F32", []int64{1}, make([]byte, 4)})
	}, "nested_absmax")
	edit("nested-blocksize", instead("}", strings.Replace(nested, "256", "128", 1)), "nested_blocksize")
	edit("nested-dtype", instead("}", strings.Replace(nested, "float32", "float16", 1)), "nested_dtype")
	edit("nested-offset-nan", instead("}", strings.Replace(nested, "1.5", "NaN", 1)), "quant state")
	edit("nested-offset-huge", instead("}", strings.Replace(nested, "1.5", "1e300", 1)), "nested_offset")
	edit("already", func(*model) {}, "already")
	b.last().Want = []string{"already", "bitsandbytes 4-bit already"}
}
