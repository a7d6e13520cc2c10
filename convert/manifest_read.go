package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// maxManifest bounds what is read of a manifest.
const maxManifest = 1 << 29

// ReadManifest reads the manifest of a checkpoint. Errors are of class fault.Input, for one
// that is missing or of another form, too.
func ReadManifest(c *hf.Checkpoint) (*Manifest, error) {
	ps := paths{out: c.Path()}
	if c.IsFile() {
		ps.file = filepath.Base(c.Path())
	}
	path := ps.manifestPath()
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.WithHint(fault.Inputf("the candidate has no manifest: %w", err), "nf4conv writes %s with everything it converts; what others made cannot be derived again", ManifestName)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fault.IOf("reading the manifest: %w", err)
	}
	if len(b) > maxManifest {
		return nil, fault.Inputf("reading %q: more than %d bytes", path, maxManifest)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	return m, nil
}

func parseManifest(b []byte) (*Manifest, error) {
	doc := struct {
		Manifest
		Options json.RawMessage `json:"options"`
	}{}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fault.Inputf("it is no manifest: %w", err)
	}
	m := &doc.Manifest
	if m.Schema != ManifestSchema {
		return nil, fault.Inputf("schema %q; expected %q", m.Schema, ManifestSchema)
	}
	if m.Format != Revision {
		return nil, fault.Inputf("revision %d of what nf4conv writes; this program writes %d", m.Format, Revision)
	}
	var err error
	switch m.Verb {
	case "quantize":
		m.Options, err = decodeOptions[QuantizeOptions](doc.Options)
	case "dequantize":
		m.Options, err = decodeOptions[DequantizeOptions](doc.Options)
	case "merge":
		m.Options, err = decodeOptions[MergeOptions](doc.Options)
	default:
		return nil, fault.Inputf("verb %q; expected quantize, dequantize or merge", m.Verb)
	}
	return m, err
}

// decodeOptions refuses options that it does not know: they would change the bytes.
func decodeOptions[T any](raw json.RawMessage) (o T, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return o, fault.Inputf("options: %w", err)
	}
	return o, nil
}
