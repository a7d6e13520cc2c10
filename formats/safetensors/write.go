package safetensors

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	nlp "github.com/nlpodyssey/safetensors"
)

// View is a tensor to be written. Data is asked for once, when its turn comes, and not
// kept, so that views may make their bytes on demand.
type View interface {
	DType() DType
	Shape() []int64
	DataLen() int64
	Data() []byte
}

// Write writes a whole file from start to end: the largest dtypes first, then by name,
// as the reference writer orders them.
func Write(w io.Writer, metadata map[string]string, views map[string]View) error {
	known := make(map[string]nlpView, len(views))
	for name, v := range views {
		d, err := nlp.ParseDType(string(v.DType()))
		if err != nil {
			return writeOwn(w, metadata, views)
		}
		known[name] = nlpView{v, d}
	}
	if err := nlp.SerializeToWriter(known, metadata, w); err != nil {
		return fmt.Errorf("writing safetensors: %w", err)
	}
	return nil
}

// nlpView shows a View to the library.
type nlpView struct {
	View
	dtype nlp.DType
}

func (v nlpView) DType() nlp.DType { return v.dtype }
func (v nlpView) DataLen() uint64  { return uint64(v.View.DataLen()) }
func (v nlpView) Shape() []uint64 {
	out := make([]uint64, len(v.View.Shape()))
	for i, d := range v.View.Shape() {
		out[i] = uint64(d)
	}
	return out
}

// writeOwn is for dtypes that the library does not know.
func writeOwn(w io.Writer, metadata map[string]string, views map[string]View) error {
	names := make([]string, 0, len(views))
	for name := range views {
		names = append(names, name)
	}
	width := func(name string) int { bits, _ := views[name].DType().Bits(); return bits }
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(width(b), width(a)), cmp.Compare(a, b)) })
	var ts []Tensor
	var at int64
	for _, name := range names {
		v := views[name]
		ts = append(ts, Tensor{Name: name, DType: v.DType(), Shape: v.Shape(), Begin: at, End: at + v.DataLen()})
		at += v.DataLen()
	}
	header, err := EncodeHeader(metadata, ts, 0)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("writing safetensors: %w", err)
	}
	for _, name := range names {
		if _, err := w.Write(views[name].Data()); err != nil {
			return fmt.Errorf("writing safetensors: tensor %q: %w", name, err)
		}
	}
	return nil
}
