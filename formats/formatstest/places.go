package formatstest

import (
	"os"
	"path/filepath"
	"strings"
)

// remove takes a file away again.
func (b *builder) remove(dir, name string) {
	b.tb.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		b.tb.Fatal(err)
	}
}

// places are directories without a weight file, or with something else in its place.
func (b *builder) places() {
	m := llama()
	b.add("place/empty-directory", "empty-directory", weights)
	dir := b.add("place/config-only", "config-only", weights)
	b.write(dir, "config.json", []byte(config))

	for _, f := range []struct{ name, file, want string }{
		{"pickle", "pytorch_model.bin", "neither"},
		{"pickle-pt", "consolidated.00.pth", "neither"},
		{"gguf", "model-Q4_K_M.gguf", "neither"},
		{"tensorflow", "tf_model.h5", "neither"},
		{"flax", "flax_model.msgpack", "neither"},
		{"onnx", "model.onnx", "neither"},
	} {
		dir := b.add("place/"+f.name, f.name, f.want)
		b.write(dir, "config.json", []byte(config))
		b.write(dir, f.file, []byte("PK\x03\x04"))
		// The same file given by its name.
		b.cases = append(b.cases, Case{Name: "place/" + f.name + "-by-name", Path: filepath.Join(dir, f.file), Want: []string{f.file, "expected a checkpoint directory or a .safetensors file"}})
	}
	dir = b.add("place/adapter", "adapter", "neither")
	b.write(dir, "adapter_config.json", []byte(`{"peft_type":"LORA"}`))
	b.write(dir, "adapter_model.safetensors", m.file())
	dir = b.add("place/diffusers", "diffusers", "neither")
	b.write(dir, "model_index.json", []byte("{}"))
	dir = b.add("place/hub-cache", "hub-cache", "neither")
	for _, d := range []string{"blobs", "refs", "snapshots"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			b.tb.Fatal(err)
		}
	}
	dir = b.add("place/config-by-name", "config.json", "expected a checkpoint directory")
	b.model(dir, m)
	b.last().Path = filepath.Join(dir, "config.json")
	dir = b.add("place/nowhere", "nothing-here")
	b.last().Path = filepath.Join(dir, "nothing-here")
	dir = b.add("place/no-file", "nothing.safetensors")
	b.last().Path = filepath.Join(dir, "nothing.safetensors")
	dir = b.add("place/directory", weights, "regular file")
	b.write(dir, "config.json", []byte(config))
	if err := os.Mkdir(filepath.Join(dir, weights), 0o755); err != nil {
		b.tb.Fatal(err)
	}
	dir = b.add("place/no-tensors", "no-tensors", "not one tensor")
	b.write(dir, "config.json", []byte(config))
	b.write(dir, weights, assemble("{}", nil))
	dir = b.add("place/long-name", strings.Repeat("x", 100))
	b.last().Path = filepath.Join(dir, strings.Repeat("x", 300)+".safetensors")

	for _, l := range []struct{ name, target string }{
		{"link-to-itself", weights},
		{"dangling-link", "../blobs/0123456789abcdef"},
		{"link-to-directory", "."},
	} {
		dir := b.add("place/"+l.name, weights)
		b.write(dir, "config.json", []byte(config))
		b.link(l.target, dir, weights)
	}
	dir = b.add("place/link-loop", weights)
	b.write(dir, "config.json", []byte(config))
	if b.link("other", dir, weights) {
		b.link(weights, dir, "other")
	}
	dir = b.add("place/link-to-device", weights, "regular file")
	b.write(dir, "config.json", []byte(config))
	b.link(os.DevNull, dir, weights)
	dir = b.add("place/fifo", weights, "regular file")
	b.write(dir, "config.json", []byte(config))
	b.fifo(dir, weights)
	dir = b.add("place/fifo-by-name", "pipe.safetensors", "regular file")
	b.last().Path = filepath.Join(dir, "pipe.safetensors")
	b.fifo(dir, "pipe.safetensors")
	dir = b.add("place/dangling-side-file", "tokenizer.json")
	b.model(dir, m)
	b.link("../blobs/0123456789abcdef", dir, "tokenizer.json")

	untied := llama()
	untied.remove("lm_head.weight")
	dir = b.add("place/untied-without-lm_head", "untied-without-lm_head", "lm_head")
	b.model(dir, untied)
}
