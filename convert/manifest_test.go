package convert

import (
	"bytes"
	"encoding/json"
	"testing"
)

// The manifest is written piece by piece and is what encoding/json makes of the whole.
func TestManifestWrite(t *testing.T) {
	m := &Manifest{Schema: ManifestSchema, Verb: "quantize", Options: map[string]int{"a": 1}}
	for _, name := range []string{"one", "two", "null\n}"} {
		m.Tensors = append(m.Tensors, ManifestTensor{Name: name, Steps: []Step{{Op: OpCopy}}, Source: []TensorDigest{{Tensor: name}}})
		want, err := json.MarshalIndent(m, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := m.write(&got); err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want)+"\n" {
			t.Errorf("%d tensors: wrote\n%s\nwant\n%s", len(m.Tensors), got.String(), want)
		}
	}
}
