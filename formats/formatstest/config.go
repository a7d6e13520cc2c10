package formatstest

import (
	"os"
	"path/filepath"
	"strings"
)

// configs are checkpoints with good weights whose config.json is wrong.
func (b *builder) configs() {
	weightFile := llama().file()
	add := func(name, text string, want ...string) {
		b.tb.Helper()
		dir := b.add("config/"+name, append([]string{"config.json"}, want...)...)
		b.write(dir, "config.json", []byte(text))
		b.write(dir, weights, weightFile)
	}
	body := strings.TrimSuffix(strings.TrimSpace(config), "}")
	// also appends a key.
	also := func(text string) string { return body + "," + text + "}" }
	instead := func(old, text string) string {
		if !strings.Contains(config, old) {
			panic("formatstest: internal error: no " + old)
		}
		return strings.Replace(config, old, text, 1)
	}
	add("empty", "", "too early")
	add("array", "["+config+"]", "expected a JSON object")
	add("string", `"llama"`, "expected a JSON object")
	add("null", "null", "expected a JSON object")
	add("binary", "\x00\x01\x02\x03", "at byte")
	add("pickle", "\x80\x02}q\x00(X", "UTF-8")
	add("not-utf8", instead("LlamaForCausalLM", "Llama\xffForCausalLM"), "UTF-8")
	add("byte-order-mark", "\ufeff"+config, "at byte")
	add("truncated", config[:len(config)/2], "at byte")
	add("trailing", config+config, "follows")
	add("python-literal", instead("false", "False"), "at byte")
	add("nan-python-does-not-read", instead("1e-05", "-NaN"), "at byte")
	add("comment", "// a comment\n"+config, "at byte")
	add("html", "<!DOCTYPE html><html></html>", "at byte")
	add("deep-1000", also(`"x":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)), "256 deep")
	add("deep-2^20-arrays", strings.Repeat("[", 1<<20), "256 deep")
	add("deep-2^20-objects", strings.Repeat(`{"a":`, 1<<20)+"1"+strings.Repeat("}", 1<<20), "256 deep")
	add("duplicate-key", also(`"model_type":"gpt2"`), "model_type", "twice")
	add("duplicate-key-escaped", also(`"model\u005ftype":"gpt2"`), "model_type", "twice")
	add("duplicate-key-inside", also(`"rope_scaling":{"factor":2,"factor":4}`), "factor", "twice")

	add("model_type-number", instead(`"llama"`, "7"), "model_type", "expected a string, found a number")
	add("model_type-list", instead(`"llama"`, `["llama"]`), "model_type", "found a list")
	add("architectures-string", instead(`["LlamaForCausalLM"]`, `"LlamaForCausalLM"`), "architectures", "expected a list of strings")
	add("architectures-numbers", instead(`["LlamaForCausalLM"]`, "[1]"), "architectures", "expected a list of strings", "found a list with a number in it")
	add("layer-missing", instead(`"num_hidden_layers": 1`, `"num_hidden_layers": 2`), "model.layers.1", "num_hidden_layers 2", "found 1")
	add("size", instead(`"intermediate_size": 64`, `"intermediate_size": 96`), "mlp.down_proj.weight", "[32 96]", "[32 64]")
	add("dtype-float64", instead(`"bfloat16"`, `"float64"`), "dtype", "float64", "not supported")
	add("architectures-object", instead(`["LlamaForCausalLM"]`, "{}"), "architectures", "found an object")
	add("dtype-number", instead(`"bfloat16"`, "16"), "dtype", "found a number")
	add("dtype-unknown", instead(`"bfloat16"`, `"int4"`), "dtype", "int4")
	add("torch_dtype-boolean", instead(`"dtype": "bfloat16"`, `"torch_dtype": true`), "torch_dtype", "found a boolean")
	add("tied-string", instead("false", `"false"`), "tie_word_embeddings", "expected true or false, found a string")
	add("tied-number", instead("false", "0"), "tie_word_embeddings", "found a number")
	add("text_config-list", also(`"text_config":[]`), "text_config", "found a list")
	add("quantization_config-string", also(`"quantization_config":"bitsandbytes"`), "quantization_config", "found a string")
	add("quantization_config-list", also(`"quantization_config":[{"load_in_4bit":true}]`), "quantization_config", "found a list")

	// What stands at config.json is no such file.
	dir := b.add("config/directory", "config.json", "regular file")
	b.write(dir, weights, weightFile)
	if err := os.Mkdir(filepath.Join(dir, "config.json"), 0o755); err != nil {
		b.tb.Fatal(err)
	}
	dir = b.add("config/gigabytes", "config.json", "more than such a file has")
	b.write(dir, weights, weightFile)
	b.write(dir, "config.json", []byte(config))
	if err := os.Truncate(filepath.Join(dir, "config.json"), 4<<30); err != nil { // sparse
		b.tb.Fatal(err)
	}
	dir = b.add("config/dangling-link", "config.json", "does not exist")
	b.write(dir, weights, weightFile)
	b.link("../blobs/0123456789abcdef", dir, "config.json")
	dir = b.add("config/link-to-itself", "config.json")
	b.write(dir, weights, weightFile)
	b.link("config.json", dir, "config.json")
	dir = b.add("config/fifo", "config.json", "regular file")
	b.write(dir, weights, weightFile)
	b.fifo(dir, "config.json")
}
