package convert

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/internal/units"
)

// writeCard adds a section about the conversion to the model card: to the one that was
// carried, or to a new one.
func (r *runner) writeCard(files []sealed, m *Manifest, sync bool) error {
	const name = "README.md"
	carried := slices.ContainsFunc(m.Carried, func(f ManifestFile) bool { return f.Name == name })
	var old []byte
	if carried { // else what stands there was written by an interrupted run
		var err error
		if old, err = os.ReadFile(filepath.Join(r.out.paths.partial, name)); err != nil {
			return fault.IOf("reading the carried %q: %w", name, err)
		}
	}
	var b bytes.Buffer
	if !carried {
		tags := ""
		if r.plan.Totals.Quantized > 0 {
			tags = "tags:\n- bitsandbytes\n- 4-bit\n"
		}
		fmt.Fprintf(&b, "---\nbase_model: %s\nlibrary_name: transformers\n%s---\n\n# %s, %s\n", r.plan.Source.Name, tags, r.plan.Source.Name, r.method())
	} else {
		b.Write(bytes.TrimRight(old, "\n"))
		b.WriteString("\n")
	}
	var in, out int64
	for _, f := range r.plan.Source.Files {
		in += f.Size
	}
	for _, f := range files {
		out += f.size
	}
	t := &r.plan.Totals
	fmt.Fprintf(&b, "\n## Conversion\n\n"+
		"| | |\n|---|---|\n"+
		"| base model | %s |\n| made by | %s %s |\n| method | %s |\n"+
		"| parameters | %d, of which %d in %s are 4-bit |\n"+
		"| size | %d -> %d bytes |\n",
		r.plan.Source.Name, m.Tool.Name, m.Tool.Version, r.method(), t.Params, t.QuantizedParams, units.Things(t.Quantized, "module"), in, out)
	for _, k := range t.Kept {
		fmt.Fprintf(&b, "| not quantized | %s, %s: %s |\n", units.Things(k.Tensors, "tensor"), units.Things(k.Params, "parameter"), k.Why)
	}
	fmt.Fprintf(&b, "\n`%s` holds the digest of every tensor read and written.\n", ManifestName)
	if err := r.out.writeText(name, b.Bytes(), sync); err != nil {
		return err
	}
	d := treehash.Sum(b.Bytes())
	m.Carried = slices.DeleteFunc(m.Carried, func(f ManifestFile) bool { return f.Name == name })
	m.Written = append(m.Written, ManifestFile{Name: name, Size: int64(b.Len()), BLAKE3: &d})
	return nil
}

// method is the conversion in a few words.
func (r *runner) method() string {
	switch o := r.plan.Options.(type) {
	case QuantizeOptions:
		return quantizeMethod(&o)
	case MergeOptions:
		s := "merged with "
		for i, a := range o.Adapters {
			if i > 0 {
				s += ", "
			}
			if a.Weight != 1 {
				s += fmt.Sprintf("%g times ", a.Weight)
			}
			s += a.Name
		}
		if o.Quantize != nil {
			s += "; " + quantizeMethod(o.Quantize)
		}
		return s
	}
	return "dequantized to " + r.plan.Model.DType
}

func quantizeMethod(o *QuantizeOptions) string {
	s := fmt.Sprintf("bitsandbytes %s, block size %d", o.TypeName, o.BlockSize)
	if o.DoubleQuant {
		s += ", double quantization"
	}
	return s
}
