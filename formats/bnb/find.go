package bnb

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/nf4"
)

// Weight is a 4-bit weight of a checkpoint. The nested tensors are empty without double
// quantization.
type Weight struct {
	Name           string // of the packed tensor: "P.weight"
	Packed         hf.Tensor
	Absmax         hf.Tensor
	QuantMap       hf.Tensor
	NestedAbsmax   hf.Tensor
	NestedQuantMap hf.Tensor
	State          hf.Tensor
	QuantState     QuantState
}

// Parts are the physical tensors of the weight, the packed one first.
func (w *Weight) Parts() []hf.Tensor {
	parts := []hf.Tensor{w.Packed, w.Absmax, w.QuantMap}
	if w.QuantState.Nested {
		parts = append(parts, w.NestedAbsmax, w.NestedQuantMap)
	}
	return append(parts, w.State)
}

// maxState bounds the quant-state JSON.
const maxState = 1 << 16

// Find returns every 4-bit weight of the checkpoint, in source order, after checking
// that each is complete and consistent. Errors are of class fault.Input.
func Find(c *hf.Checkpoint) ([]Weight, error) {
	states := map[string]hf.Tensor{} // weight name -> its quant state
	for _, t := range c.Tensors() {
		name, typ, ok := strings.Cut(t.Name, stateSuffix)
		if !ok {
			continue
		}
		if _, err := nf4.Parse(typ); err != nil {
			return nil, refuse(t, "a quant state of type %q; expected nf4 or fp4", typ)
		}
		if _, twice := states[name]; twice {
			return nil, refuse(t, "a second quant state of %q", name)
		}
		states[name] = t
	}
	var out []Weight
	for _, t := range c.Tensors() {
		state, ok := states[t.Name]
		if !ok {
			continue
		}
		delete(states, t.Name)
		w, err := load(c, t, state)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	for _, t := range c.Tensors() { // the first one: the order of a map is another every time
		name, _, _ := strings.Cut(t.Name, stateSuffix)
		if state, left := states[name]; left && state.Name == t.Name {
			return nil, refuse(t, "a quant state whose weight %q is missing", name)
		}
	}
	return out, checkStrays(c, out)
}

func refuse(t hf.Tensor, format string, a ...any) error {
	return fault.Inputf("reading %q: tensor %q: %w", t.File.Path(), t.Name, fmt.Errorf(format, a...))
}

func load(c *hf.Checkpoint, packed, state hf.Tensor) (Weight, error) {
	w := Weight{Name: packed.Name, Packed: packed, State: state}
	if state.Bytes() > maxState {
		return w, refuse(state, "%d bytes are too many for a quant state", state.Bytes())
	}
	text := make([]byte, state.Bytes())
	if err := state.ReadAt(text, 0); err != nil {
		return w, err
	}
	q, err := ParseQuantState(text)
	if err != nil {
		return w, refuse(state, "%w", err)
	}
	if !strings.HasSuffix(state.Name, StateSuffix(q.Type)) {
		return w, refuse(state, "the JSON says quant_type %v", q.Type)
	}
	w.QuantState = q
	n, err := elems(q.Shape)
	if err != nil {
		return w, refuse(state, "%w", err)
	}
	if want := nf4.PackedLen(n); packed.Bytes() != want {
		return w, refuse(packed, "shape %v in 4 bits takes %d bytes, found %d", q.Shape, want, packed.Bytes())
	}
	nb := nf4.NumBlocks(n, q.BlockSize)
	absmaxType := safetensors.DType("F32")
	if q.Nested {
		absmaxType = "U8"
	}
	for _, p := range []struct {
		dst    *hf.Tensor
		suffix string
		dtype  safetensors.DType
		elems  int64
		want   bool
	}{
		{&w.Absmax, AbsmaxSuffix, absmaxType, nb, true},
		{&w.QuantMap, QuantMapSuffix, "F32", 16, true},
		{&w.NestedAbsmax, NestedAbsmaxSuffix, "F32", (nb + doublequant.BlockSize - 1) / doublequant.BlockSize, q.Nested},
		{&w.NestedQuantMap, NestedQuantMapSuffix, "F32", 256, q.Nested},
	} {
		t, ok := c.Lookup(w.Name + p.suffix)
		switch {
		case ok && !p.want:
			return w, refuse(t, "the quant state of %q says nothing of double quantization", w.Name)
		case !p.want:
			continue
		case !ok:
			return w, refuse(packed, "%q is missing", w.Name+p.suffix)
		case t.DType != p.dtype || t.Elems() != p.elems:
			return w, refuse(t, "expected %s with %d elements, found %s %v", p.dtype, p.elems, t.DType, t.Shape)
		}
		*p.dst = t
	}
	return w, checkMap(w.QuantMap, q.Type)
}

// checkMap compares the stored code book with the one its type names: bitsandbytes'
// kernels use their own, whatever the file says.
func checkMap(t hf.Tensor, typ nf4.Type) error {
	have := make([]byte, t.Bytes())
	if err := t.ReadAt(have, 0); err != nil {
		return err
	}
	want := make([]byte, len(have))
	cast.FromF32(want, typ.Codebook().Levels[:], kernels.F32)
	if !bytes.Equal(have, want) {
		return refuse(t, "it is not the %v code book, and bitsandbytes would not use it", typ)
	}
	return nil
}

// checkStrays refuses parts of quant states that belong to no weight.
func checkStrays(c *hf.Checkpoint, ws []Weight) error {
	used := map[string]bool{}
	for i := range ws {
		for _, p := range ws[i].Parts() {
			used[p.Name] = true
		}
	}
	for _, t := range c.Tensors() {
		if used[t.Name] {
			continue
		}
		for _, suffix := range []string{AbsmaxSuffix, QuantMapSuffix, NestedAbsmaxSuffix, NestedQuantMapSuffix} {
			if name, ok := strings.CutSuffix(t.Name, suffix); ok {
				return refuse(t, "part of a 4-bit weight, but %q has no quant state", name)
			}
		}
	}
	return nil
}
