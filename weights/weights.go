// Package weights shows a checkpoint as logical tensors, whatever they are stored in.
// A [Tensor] reads any range of its values as float32; the physical tensors that hold
// them (packed codes, scales, maps) stay behind it.
//
// Storages: floats as they are; bitsandbytes 4-bit; FP8 with a scale per block
// (DeepSeek's weight_scale_inv); MXFP4 of gpt-oss. Every other way of quantizing is
// refused by name: passing its bytes through would write a broken model.
package weights

import (
	"fmt"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// Tensor is a logical tensor.
type Tensor interface {
	// Name is the name it has, or would have, in an unquantized checkpoint.
	Name() string
	// Shape is the logical shape, row-major. A 4-bit weight has [out, in].
	Shape() []int64
	// Storage is the header's dtype for tensors stored as they are, else the scheme: "nf4",
	// "fp4", "fp8-block" or "mxfp4".
	Storage() string
	// ReadF32 fills dst with the values from flat index off on, exactly as a consumer sees
	// them: 4-bit weights rounded to the dtype of their quant state. It takes memory in
	// proportion to len(dst) and may be called concurrently.
	ReadF32(dst []float32, off int64) error
	// Format is the smallest format that holds every value exactly; what ReadF32 gives can be
	// rounded to it without a loss.
	Format() kernels.Float
	// Sources are the physical tensors, the one with the most bytes first.
	Sources() []hf.Tensor
}

// Set is all logical tensors of a checkpoint.
type Set struct {
	tensors []Tensor
	byName  map[string]int
	scheme  string
}

// Tensors are in source order: at the place of the physical tensor with the most bytes.
func (s *Set) Tensors() []Tensor { return s.tensors }

// Lookup finds a logical tensor by name.
func (s *Set) Lookup(name string) (Tensor, bool) {
	i, ok := s.byName[name]
	if !ok {
		return nil, false
	}
	return s.tensors[i], true
}

// Scheme is "none", "bitsandbytes", "fp8" or "mxfp4".
func (s *Set) Scheme() string { return s.scheme }

// Open groups the tensors of a checkpoint. It reads quant states, never weights. Errors
// are of class fault.Input.
func Open(c *hf.Checkpoint) (*Set, error) {
	if err := CheckScheme(c); err != nil {
		return nil, err
	}
	s := &Set{byName: map[string]int{}, scheme: "none"}
	made := map[string]Tensor{} // by the name of its main physical tensor
	used := map[string]bool{}   // physical tensors that belong to a logical one
	take := func(scheme string, t Tensor) {
		s.scheme = scheme
		made[t.Sources()[0].Name] = t
		for _, p := range t.Sources() {
			used[p.Name] = true
		}
	}
	four, err := bnb.Find(c)
	if err != nil {
		return nil, err
	}
	for i := range four {
		t, err := newFourBit(&four[i])
		if err != nil {
			return nil, err
		}
		take("bitsandbytes", t)
	}
	for _, t := range c.Tensors() {
		if used[t.Name] {
			continue
		}
		var l Tensor
		scheme := "fp8"
		l, err = newFP8(c, t)
		if l == nil && err == nil {
			scheme = "mxfp4"
			l, err = newMXFP4(c, t)
		}
		if err != nil {
			return nil, err
		}
		if l != nil {
			if len(four) > 0 {
				return nil, refuse(t, "%s beside bitsandbytes 4-bit weights; expected one way of quantizing", l.Storage())
			}
			take(scheme, l)
		}
	}
	for _, t := range c.Tensors() {
		l, ok := made[t.Name]
		switch {
		case ok:
		case used[t.Name]:
			continue
		default:
			l = plain{t}
		}
		if err := s.add(l); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// add appends a tensor whose name must be new.
func (s *Set) add(t Tensor) error {
	if k, twice := s.byName[t.Name()]; twice {
		return fault.Inputf("reading %q: tensor %q is there twice, as %s and as %s",
			t.Sources()[0].File.Path(), t.Name(), s.tensors[k].Storage(), t.Storage())
	}
	s.byName[t.Name()] = len(s.tensors)
	s.tensors = append(s.tensors, t)
	return nil
}

// plain is a tensor stored as it is.
type plain struct{ t hf.Tensor }

func (p plain) Name() string         { return p.t.Name }
func (p plain) Shape() []int64       { return p.t.Shape }
func (p plain) Storage() string      { return string(p.t.DType) }
func (p plain) Sources() []hf.Tensor { return []hf.Tensor{p.t} }

// Format is F32 for what is not read as numbers, too.
func (p plain) Format() kernels.Float {
	f, ok := p.t.DType.Float()
	if !ok {
		return kernels.F32
	}
	return f
}

func (p plain) ReadF32(dst []float32, off int64) error {
	f, ok := p.t.DType.Float()
	if !ok {
		return fault.Inputf("reading %q: tensor %q: dtype %s is not read as numbers; expected F32, BF16 or F16", p.t.File.Path(), p.t.Name, p.t.DType)
	}
	buf := make([]byte, len(dst)*f.Size())
	if err := p.t.ReadAt(buf, off*int64(f.Size())); err != nil {
		return err
	}
	cast.ToF32(dst, buf, f)
	return nil
}

// Read fills dst with the values of t from flat index off on, in the format t.Format(),
// little-endian: what ReadF32 gives, without a detour where there is a shorter way.
func Read(t Tensor, dst []byte, off int64) error {
	f := t.Format()
	size := int64(f.Size())
	n := int64(len(dst)) / size
	if n == 0 {
		return nil
	}
	switch s := t.(type) {
	case plain:
		if _, ok := s.t.DType.Float(); ok {
			return s.t.ReadAt(dst, off*size)
		}
	case *fourBit:
		if off%int64(s.w.QuantState.BlockSize) == 0 {
			return s.read(dst, n, off)
		}
	}
	buf := make([]float32, min(1<<16, n))
	for at := int64(0); at < n; at += int64(len(buf)) {
		v := buf[:min(int64(len(buf)), n-at)]
		if err := t.ReadF32(v, off+at); err != nil {
			return err
		}
		cast.FromF32(dst[at*size:(at+int64(len(v)))*size], v, f)
	}
	return nil
}

// readAll reads a small tensor whole.
func readAll(t hf.Tensor) ([]byte, error) {
	b := make([]byte, t.Bytes())
	return b, t.ReadAt(b, 0)
}

func refuse(t hf.Tensor, format string, a ...any) error {
	return fault.Inputf("reading %q: tensor %q: %w", t.File.Path(), t.Name, fmt.Errorf(format, a...))
}
