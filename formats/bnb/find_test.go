package bnb_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// parts are the tensors of a weight, in the order of Weight.Parts.
func parts(name string, q bnb.QuantState) []formatstest.Tensor {
	n := int64(1)
	for _, d := range q.Shape {
		n *= d
	}
	nb := nf4.NumBlocks(n, q.BlockSize)
	var book []byte
	for _, l := range q.Type.Codebook().Levels {
		book = binary.LittleEndian.AppendUint32(book, math.Float32bits(l))
	}
	t := func(suffix, dtype string, elems int64, data []byte) formatstest.Tensor {
		return formatstest.Tensor{Name: name + suffix, DType: dtype, Shape: []int64{elems}, Data: data}
	}
	packed := t("", "U8", nf4.PackedLen(n), make([]byte, nf4.PackedLen(n)))
	packed.Shape = append(packed.Shape, 1)
	ts := []formatstest.Tensor{packed, t(".absmax", "F32", nb, make([]byte, 4*nb)), t(".quant_map", "F32", 16, book)}
	if q.Nested {
		ng := (nb + 255) / 256
		ts[1] = t(".absmax", "U8", nb, make([]byte, nb))
		ts = append(ts, t(".nested_absmax", "F32", ng, make([]byte, 4*ng)), t(".nested_quant_map", "F32", 256, make([]byte, 1024)))
	}
	state := q.JSON()
	return append(ts, t(".quant_state.bitsandbytes__"+q.Type.String(), "U8", int64(len(state)), state))
}

// states are a weight of every kind: both types, with and without double quantization,
// short last blocks, an odd number of elements, one block of 256 scales and more.
func states() map[string]bnb.QuantState {
	nest := func(q bnb.QuantState) bnb.QuantState {
		q.Nested, q.NestedBlockSize, q.NestedDType, q.NestedOffset = true, 256, "float32", 0.25
		return q
	}
	return map[string]bnb.QuantState{
		"a.weight": {Type: nf4.NF4, BlockSize: 64, DType: kernels.BF16, Shape: []int64{4, 32}},
		"b.weight": nest(bnb.QuantState{Type: nf4.NF4, BlockSize: 32, DType: kernels.F16, Shape: []int64{3, 11}}),
		"c":        nest(bnb.QuantState{Type: nf4.FP4, BlockSize: 32, DType: kernels.F32, Shape: []int64{257, 32}}),
		"d.weight": {Type: nf4.FP4, BlockSize: 4096, DType: kernels.F32, Shape: []int64{1, 1}},
		"e.weight": nest(bnb.QuantState{Type: nf4.NF4, BlockSize: 32, DType: kernels.BF16, Shape: []int64{256, 32}}),
	}
}

func find(t *testing.T, ts []formatstest.Tensor) ([]bnb.Weight, error) {
	t.Helper()
	dir := t.TempDir()
	formatstest.Write(t, dir, "", ts...)
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return bnb.Find(c)
}

// Weights come in the order of their packed tensors, each with its own parts, wherever
// those stand.
func TestFind(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		all := []formatstest.Tensor{{Name: "norm.weight", DType: "BF16", Shape: []int64{1}, Data: []byte{0, 0}}}
		want := map[string][]string{}
		for name, q := range states() {
			for _, p := range parts(name, q) {
				want[name] = append(want[name], p.Name)
				all = append(all, p)
			}
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		ws, err := find(t, all)
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for _, x := range all {
			if _, packed := want[x.Name]; packed {
				order = append(order, x.Name)
			}
		}
		var found []string
		for i := range ws {
			found = append(found, ws[i].Name)
			var names []string
			for _, p := range ws[i].Parts() {
				names = append(names, p.Name)
			}
			if !slices.Equal(names, want[ws[i].Name]) || !reflect.DeepEqual(ws[i].QuantState, states()[ws[i].Name]) {
				t.Errorf("%s: parts %q, state %+v", ws[i].Name, names, ws[i].QuantState)
			}
		}
		if !slices.Equal(found, order) {
			t.Fatalf("found %q, want %q", found, order)
		}
	}
	if ws, err := find(t, []formatstest.Tensor{{Name: "w", DType: "BF16", Shape: []int64{1}, Data: []byte{0, 0}}}); len(ws) != 0 || err != nil {
		t.Errorf("without 4-bit weights: %v, %v", ws, err)
	}
}

// Every part is needed, in its dtype and length: whatever is taken from a weight is
// refused by name, and in the same words every time.
func TestFindRefusesAnyDefect(t *testing.T) {
	for name, q := range states() {
		whole := parts(name, q)
		for i, p := range whole {
			defects := map[string]func(*formatstest.Tensor){
				"missing": nil,
				"short":   func(x *formatstest.Tensor) { x.Shape[0]--; x.Data = x.Data[:len(x.Data)-len(p.Data)/int(p.Shape[0])] },
				"long": func(x *formatstest.Tensor) {
					x.Shape[0]++
					x.Data = append(slices.Clone(x.Data), make([]byte, len(p.Data)/int(p.Shape[0]))...)
				},
				"renamed": func(x *formatstest.Tensor) { x.Name = "other." + x.Name },
			}
			if p.DType == "F32" {
				defects["of I32"] = func(x *formatstest.Tensor) { x.DType = "I32" }
			} else if i == 1 {
				defects["of I8"] = func(x *formatstest.Tensor) { x.DType = "I8" }
			}
			for defect, change := range defects {
				ts := slices.Clone(whole)
				if change == nil {
					ts = slices.Delete(ts, i, i+1)
				} else {
					ts[i].Shape = slices.Clone(p.Shape)
					change(&ts[i])
				}
				if len(ts) == 0 {
					continue
				}
				_, err := find(t, ts)
				if fault.ClassOf(err) != fault.Input || !strings.Contains(fmt.Sprint(err), name) || !strings.Contains(fmt.Sprint(err), "model.safetensors") {
					t.Errorf("%s %s: %v; want class input, the file and %q", p.Name, defect, err, name)
				}
			}
		}
	}
	var stray []formatstest.Tensor
	for i := range 20 { // states without weights
		q := states()["a.weight"]
		stray = append(stray, parts(fmt.Sprintf("w%d", i), q)[3])
	}
	for range 10 {
		if _, err := find(t, stray); !strings.Contains(fmt.Sprint(err), `weight "w0" is missing`) {
			t.Fatalf("error %v, want the first state", err)
		}
	}
}
