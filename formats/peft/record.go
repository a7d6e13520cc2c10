package peft

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// RecordName is the file in which an adapter may say what base it was made from.
const RecordName = "nf4conv.json"

// RecordSchema names the form of the record.
const RecordSchema = "nf4conv.adapter/1"

// BaseTensor is the BLAKE3-256 of the bytes of a tensor of the base.
type BaseTensor struct {
	Tensor string          `json:"tensor"`
	BLAKE3 treehash.Digest `json:"blake3"`
}

// record is what is read of the file.
type record struct {
	Schema string       `json:"schema"`
	Base   []BaseTensor `json:"base"`
}

// BaseDigests are the digests of tensors of the base that the adapter recorded; none when
// it has no record. A record that cannot be read is an error: it is there to be compared.
func (a *Adapter) BaseDigests() ([]BaseTensor, error) {
	path := filepath.Join(a.path, RecordName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.IOf("reading %q: %w", path, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fault.Inputf("reading %q: %w", path, err)
	}
	if r.Schema != RecordSchema {
		return nil, fault.Inputf("reading %q: schema %q; expected %q", path, r.Schema, RecordSchema)
	}
	return r.Base, nil
}
