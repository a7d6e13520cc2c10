package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/nf4conv/nf4conv/internal/treehash"
)

// ManifestName is the file that says how a checkpoint was made.
const ManifestName = "nf4conv.json"

// ManifestSchema names the form of the manifest.
const ManifestSchema = "nf4conv.manifest/1"

// Tool identifies the program that wrote a checkpoint.
type Tool struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
}

// Manifest says how a checkpoint was made, so that the conversion can be repeated and
// compared. It is a function of the source, the options and the tool: it holds no
// times and no names of machines.
type Manifest struct {
	Schema    string            `json:"schema"`
	Tool      Tool              `json:"tool"`
	Format    int               `json:"revision"` // Revision
	Verb      string            `json:"verb"`
	Options   any               `json:"options"`
	Codebooks map[string]string `json:"codebooks,omitempty"` // type -> BLAKE3 of the 16 float32 levels
	Source    Source            `json:"source"`
	Model     Model             `json:"model"`
	Files     []ManifestFile    `json:"files"`             // of weights
	Written   []ManifestFile    `json:"written,omitempty"` // other files made by the tool
	Carried   []ManifestFile    `json:"carried,omitempty"` // copied from the source
	Merge     *Merging          `json:"merge,omitempty"`   // of adapters
	Tensors   []ManifestTensor  `json:"tensors"`
}

// ManifestFile is a file of the output.
type ManifestFile struct {
	Name   string           `json:"name"`
	Size   int64            `json:"size"`
	BLAKE3 *treehash.Digest `json:"blake3,omitempty"`
	SHA256 string           `json:"sha256,omitempty"`
}

// ManifestTensor is a logical tensor: what was read, what was done, what was written.
type ManifestTensor struct {
	Name     string         `json:"name"`
	Why      string         `json:"why"`
	Steps    []Step         `json:"steps"`
	Source   []TensorDigest `json:"source"`
	Outputs  []TensorDigest `json:"outputs"`
	RelError float64        `json:"rel_error,omitempty"`
	Merge    *TensorMerge   `json:"merge,omitempty"`
}

// TensorDigest is the BLAKE3-256 of a tensor's bytes.
type TensorDigest struct {
	Tensor string          `json:"tensor"`
	File   string          `json:"file"`
	BLAKE3 treehash.Digest `json:"blake3"`
}

// manifest gathers what is known when the weight files are sealed.
func (r *runner) manifest(files []sealed) *Manifest {
	m := &Manifest{
		Schema: ManifestSchema, Tool: r.opts.Tool, Format: r.plan.Revision, Verb: r.plan.Verb,
		Options: r.plan.Options, Source: r.plan.Source, Model: r.plan.Model, Merge: r.plan.Merge,
		Codebooks: codebooksOf(r.plan.Jobs),
	}
	for _, f := range files {
		m.Files = append(m.Files, ManifestFile{Name: f.Name, Size: f.size})
	}
	for i := range r.plan.Jobs {
		j := &r.plan.Jobs[i]
		t := ManifestTensor{Name: j.Name, Why: j.Why, Steps: j.Steps, RelError: r.records[i].Rel, Merge: r.records[i].Merge}
		for k, in := range j.Inputs {
			t.Source = append(t.Source, TensorDigest{Tensor: in.Name, File: in.File, BLAKE3: r.records[i].Source[k]})
		}
		for k, o := range j.Outputs {
			t.Outputs = append(t.Outputs, TensorDigest{Tensor: o.Tensor, File: r.plan.Files[o.File].Name, BLAKE3: r.records[i].Outputs[k]})
		}
		m.Tensors = append(m.Tensors, t)
	}
	return m
}

// write prints the manifest as indented JSON, one tensor at a time: of a model of many
// tensors it is the largest thing that would be in memory.
func (m *Manifest) write(w io.Writer) error {
	head := *m
	head.Tensors = nil
	b, err := json.MarshalIndent(&head, "", " ")
	if err != nil {
		return fmt.Errorf("encoding the manifest: %w", err)
	}
	const empty = "null\n}" // of tensors, the last key
	if _, err := w.Write(append(bytes.TrimSuffix(b, []byte(empty)), '[')); err != nil {
		return err
	}
	separator := "\n  "
	for i := range m.Tensors {
		b, err := json.MarshalIndent(&m.Tensors[i], "  ", " ")
		if err != nil {
			return fmt.Errorf("encoding the manifest: %w", err)
		}
		if _, err := io.WriteString(w, separator); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		separator = ",\n  "
	}
	_, err = io.WriteString(w, "\n ]\n}\n")
	return err
}

// codebooksOf are the digests of the code books that the jobs of a plan use.
func codebooksOf(jobs []Job) map[string]string {
	var out map[string]string
	for i := range jobs {
		if j := &jobs[i]; j.Quantized() {
			w := compile(j)
			if out == nil {
				out = map[string]string{}
			}
			if out[w.typ.String()] == "" {
				out[w.typ.String()] = treehash.Sum(floatBytes(w.typ.Codebook().Levels[:])).String()
			}
		}
	}
	return out
}
