package formatstest

import "encoding/binary"

// values are checkpoints that are in order but for single weights.
func (b *builder) values() {
	add := func(name, tensor string, index int, bf16 uint16, want ...string) {
		b.tb.Helper()
		m := llama()
		binary.LittleEndian.PutUint16(m.tensor(tensor).data[2*index:], bf16)
		b.model(b.add("value/"+name, append([]string{weights, tensor}, want...)...), m)
		b.last().Runtime = true
	}
	const down, norm, head = "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"
	add("nan", qProj, 5*hidden+7, 0x7fc0, "[5 7]", "NaN")
	add("nan-signalling", qProj, 0, 0x7f81, "[0 0]", "NaN")
	add("nan-negative", qProj, hidden*hidden-1, 0xffff, "[31 31]", "NaN")
	add("inf", down, 31*inner+63, 0x7f80, "[31 63]", "infinity")
	add("minus-inf", down, 1*inner, 0xff80, "[1 0]", "-infinity")
	add("nan-in-norm", norm, 3, 0x7fc0, "[3]", "NaN")
	add("inf-in-lm_head", head, 2*hidden+1, 0x7f80, "[2 1]", "infinity")
	// 2^17 is an ordinary BF16 number and none of FP16.
	add("fp16-overflow", qProj, 2*hidden+3, 0x4800, "[2 3]", "131072", "float16")
	b.last().Flags = []string{"--dtype", "float16"}
	add("fp16-overflow-negative", norm, 9, 0xc800, "[9]", "-131072", "float16")
	b.last().Flags = []string{"--dtype", "float16"}
	// 65520 rounds up out of range, 65504 is the largest; BF16 has 65536 next to 65280.
	add("fp16-overflow-by-rounding", qProj, hidden, 0x4780, "[1 0]", "65536", "float16")
	b.last().Flags = []string{"--dtype", "float16"}
}
