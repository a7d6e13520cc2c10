package formatstest

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/safetensors"
)

// Sizes of the model.
const (
	hidden = 32
	inner  = 64
	vocab  = 16
)

const config = `{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "dtype": "bfloat16",
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "num_hidden_layers": 1,
  "vocab_size": 16,
  "rms_norm_eps": 1e-05,
  "tie_word_embeddings": false
}
`

// qProj is the tensor that most defects befall.
const qProj = "model.layers.0.self_attn.q_proj.weight"

// tensor is one entry of a file with its data.
type tensor struct {
	name, dtype string
	shape       []int64
	data        []byte
}

// model is a checkpoint in memory.
type model struct {
	config  string
	tensors []tensor
}

// llama is the flawless model.
func llama() *model {
	m := &model{config: config}
	add := func(name string, shape ...int64) {
		n := int64(1)
		for _, d := range shape {
			n *= d
		}
		t := tensor{name: name, dtype: "BF16", shape: shape}
		for i := range n { // multiples of 1/64 in [-1, 1): exact in BF16
			v := float32((i*37+int64(len(name)))%128-64) / 64
			t.data = binary.LittleEndian.AppendUint16(t.data, uint16(math.Float32bits(v)>>16))
		}
		m.tensors = append(m.tensors, t)
	}
	add("lm_head.weight", vocab, hidden)
	add("model.embed_tokens.weight", vocab, hidden)
	const l = "model.layers.0."
	add(l+"input_layernorm.weight", hidden)
	add(l+"mlp.down_proj.weight", hidden, inner)
	add(l+"mlp.gate_proj.weight", inner, hidden)
	add(l+"mlp.up_proj.weight", inner, hidden)
	add(l+"post_attention_layernorm.weight", hidden)
	for _, p := range []string{"k", "o", "q", "v"} {
		add(l+"self_attn."+p+"_proj.weight", hidden, hidden)
	}
	add("model.norm.weight", hidden)
	return m
}

// tensor finds a tensor.
func (m *model) tensor(name string) *tensor {
	i := slices.IndexFunc(m.tensors, func(t tensor) bool { return t.name == name })
	if i < 0 {
		panic("formatstest: internal error: no tensor " + name)
	}
	return &m.tensors[i]
}

// remove takes a tensor away.
func (m *model) remove(name string) {
	m.tensor(name) // must exist
	m.tensors = slices.DeleteFunc(m.tensors, func(t tensor) bool { return t.name == name })
}

// entry is one key of a header with the text of its value.
type entry struct{ key, value string }

// entries are the header's, in order, and the data that follows them.
func (m *model) entries() ([]entry, []byte) {
	var es []entry
	var data []byte
	for i := range m.tensors {
		t := &m.tensors[i]
		es = append(es, entry{t.name, t.value(len(data), len(data)+len(t.data))})
		data = append(data, t.data...)
	}
	return es, data
}

// value is the text of an entry.
func (t *tensor) value(begin, end int) string {
	shape := strings.ReplaceAll(strings.Trim(fmt.Sprint(t.shape), "[]"), " ", ",")
	return fmt.Sprintf(`{"dtype":%q,"shape":[%s],"data_offsets":[%d,%d]}`, t.dtype, shape, begin, end)
}

// render is the JSON of a header.
func render(es []entry) string {
	var parts []string
	for _, e := range es {
		parts = append(parts, fmt.Sprintf("%q:%s", e.key, e.value))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// assemble puts a file together whatever the header says.
func assemble(header string, data []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

// file is the safetensors file of a model, by the writer of this program.
func (m *model) file() []byte {
	var ts []safetensors.Tensor
	var data []byte
	for _, t := range m.tensors {
		begin := int64(len(data))
		data = append(data, t.data...)
		ts = append(ts, safetensors.Tensor{Name: t.name, DType: safetensors.DType(t.dtype), Shape: t.shape, Begin: begin, End: int64(len(data))})
	}
	h, err := safetensors.EncodeHeader(map[string]string{"format": "pt"}, ts, 0)
	if err != nil {
		panic("formatstest: internal error: " + err.Error())
	}
	return append(h, data...)
}

// model writes a whole checkpoint.
func (b *builder) model(dir string, m *model) {
	b.tb.Helper()
	b.write(dir, "config.json", []byte(m.config))
	b.write(dir, "model.safetensors", m.file())
}
