package formatstest

import "testing"

// Tensor is a tensor of a checkpoint to be written by [Write].
type Tensor struct {
	Name, DType string
	Shape       []int64
	Data        []byte // row-major, little-endian
}

// Write writes a checkpoint of one file into dir, which must exist: config.json unless
// config is empty, and model.safetensors with the tensors in this order.
func Write(tb testing.TB, dir, config string, ts ...Tensor) {
	tb.Helper()
	b := &builder{tb: tb}
	if config != "" {
		b.write(dir, "config.json", []byte(config))
	}
	m := &model{}
	for _, t := range ts {
		m.tensors = append(m.tensors, tensor{t.Name, t.DType, t.Shape, t.Data})
	}
	b.write(dir, weights, m.file())
}
