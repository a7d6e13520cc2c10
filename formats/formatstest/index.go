package formatstest

import (
	"encoding/json"
	"maps"
	"strings"
)

const (
	indexName = "model.safetensors.index.json"
	shard1    = "model-00001-of-00002.safetensors"
	shard2    = "model-00002-of-00002.safetensors"
)

// shards splits the model in two and returns its weight_map.
func shards() (one, two *model, weightMap map[string]string) {
	m := llama()
	one = &model{config: m.config, tensors: m.tensors[:6]}
	two = &model{config: m.config, tensors: m.tensors[6:]}
	weightMap = map[string]string{}
	for _, t := range one.tensors {
		weightMap[t.name] = shard1
	}
	for _, t := range two.tensors {
		weightMap[t.name] = shard2
	}
	return one, two, weightMap
}

func index(weightMap any) []byte {
	text, err := json.MarshalIndent(map[string]any{"metadata": map[string]any{"total_size": 43000}, "weight_map": weightMap}, "", "  ")
	if err != nil {
		panic("formatstest: internal error: " + err.Error())
	}
	return text
}

// indexes are checkpoints of two good shards with an index that is wrong.
func (b *builder) indexes() {
	one, two, good := shards()
	add := func(name string, text []byte, want ...string) string {
		b.tb.Helper()
		dir := b.add("index/"+name, append([]string{indexName}, want...)...)
		b.write(dir, "config.json", []byte(config))
		b.write(dir, shard1, one.file())
		b.write(dir, shard2, two.file())
		b.write(dir, indexName, text)
		return dir
	}
	// edited is the good map with one entry changed.
	edited := func(tensor, file string) []byte {
		m := maps.Clone(good)
		m[tensor] = file
		return index(m)
	}
	add("empty", nil, "too early")
	add("not-json", []byte("weight_map: {}"), "at byte")
	add("array", []byte("[]"), "expected a JSON object")
	add("truncated", index(good)[:300], "at byte")
	add("not-utf8", []byte("{\"weight_map\":{\"\xff\":\"a\"}}"), "UTF-8")
	add("duplicate-key", []byte(`{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}`), `"a"`, "twice")
	add("no-weight_map", []byte(`{"metadata":{}}`), "weight_map", "null")
	add("weight_map-list", index([]string{shard1}), "weight_map", "found a list")
	add("weight_map-string", index(shard1), "weight_map", "found a string")
	add("weight_map-empty", index(map[string]string{}), "weight_map")
	add("value-number", index(map[string]any{qProj: 1}), qProj, "found a number")
	add("value-null", index(map[string]any{qProj: nil}), qProj, "found null")
	add("absent-shard", edited("extra.weight", "model-00003-of-00003.safetensors"), "model-00003-of-00003.safetensors", "does not exist")
	add("traversal", edited(qProj, "../valid/model.safetensors"), "../valid/model.safetensors")
	add("traversal-backslash", edited(qProj, `..\model.safetensors`), "no plain file name")
	add("absolute-path", edited(qProj, "/etc/model.safetensors"), "/etc/model.safetensors", "no plain file name")
	add("subdirectory", edited(qProj, "sub/model.safetensors"), "no plain file name")
	add("parent", edited(qProj, ".."), "no plain file name")
	add("empty-name", edited(qProj, ""), "no plain file name")
	add("pickle", edited(qProj, "pytorch_model.bin"), "pytorch_model.bin")
	add("wrong-shard", edited(qProj, shard1), qProj, shard2)
	add("tensor-nowhere", edited("model.layers.1.mlp.up_proj.weight", shard1), "model.layers.1.mlp.up_proj.weight")
	less := maps.Clone(good)
	delete(less, qProj)
	add("tensor-unlisted", index(less), qProj)

	dir := add("missing-shard", index(good), shard2, "does not exist")
	b.remove(dir, shard2)
	dir = add("truncated-shard", index(good), "model.norm.weight", "truncated")
	b.last().Want[0] = shard2
	b.write(dir, shard2, two.file()[:len(two.file())-10])
	dir = add("no-index", index(good), "2 weight files")
	b.remove(dir, indexName)
	twice := &model{tensors: append([]tensor{*llama().tensor("lm_head.weight")}, two.tensors...)}
	dir = add("tensor-in-two-shards", index(good), "lm_head.weight", shard1)
	b.last().Want[0] = shard2
	b.write(dir, shard2, twice.file())
	dir = add("shard-is-html", index(good), "header")
	b.last().Want[0] = shard1
	b.write(dir, shard1, []byte(strings.Repeat("<html>", 100)))
	dir = add("index-link-dangling", index(good), "does not exist")
	b.remove(dir, indexName)
	b.link("../blobs/0123456789abcdef", dir, indexName)
}
