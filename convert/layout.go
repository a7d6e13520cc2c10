package convert

import (
	"fmt"

	"github.com/nf4conv/nf4conv/doublequant"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// metadata is what every weight file says of itself: transformers before 4.40 want it.
var metadata = map[string]string{"format": "pt"}

// place fills in the outputs of every job and the files they go to.
//
// Jobs fill files in order; a file is closed when the next job would make it exceed
// maxShard, so a weight and its quant state are always together. Within a file
// tensors stand by element size, largest first, so that every one is aligned, in
// source order within a size; quant-state JSON, whose length is known last, ends it.
func place(jobs []Job, fileName string, maxShard int64) ([]File, error) {
	var groups [][]*Job
	var size int64
	for i := range jobs {
		j := &jobs[i]
		outputs(j)
		var n int64
		for _, o := range j.Outputs {
			n += o.Size
		}
		if len(groups) == 0 || (size > 0 && size+n > maxShard && fileName == "") {
			groups, size = append(groups, nil), 0
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], j)
		size += n
	}
	files := make([]File, len(groups))
	for i, g := range groups {
		name := fileName
		if name == "" {
			name = shardName(i, len(groups))
		}
		f, err := placeFile(name, i, g)
		if err != nil {
			return nil, err
		}
		files[i] = f
	}
	return files, nil
}

// shardName is the name that transformers gives to file i of n.
func shardName(i, n int) string {
	if n == 1 {
		return "model.safetensors"
	}
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, n)
}

// placeFile gives every placement of the jobs its offset.
func placeFile(name string, index int, jobs []*Job) (File, error) {
	f := File{Name: name}
	var offset int64
	var entries []safetensors.Tensor
	for _, rank := range []int{8, 4, 2, 1, stateRank} {
		if rank == stateRank {
			f.StateBegin = offset
		}
		for _, j := range jobs {
			for k := range j.Outputs {
				o := &j.Outputs[k]
				if placementRank(o) != rank {
					continue
				}
				o.File, o.Offset = index, offset
				offset += o.Size
				entries = append(entries, o.entry())
			}
		}
	}
	f.DataSize = offset
	header, err := safetensors.EncodeHeader(metadata, entries, 0)
	if err != nil {
		return File{}, fmt.Errorf("planning %q: %w", name, err)
	}
	f.HeaderSize = int64(len(header))
	return f, nil
}

func (o *Placement) entry() safetensors.Tensor {
	return safetensors.Tensor{Name: o.Tensor, DType: o.DType, Shape: o.Shape, Begin: o.Offset, End: o.Offset + o.Size}
}

const stateRank = 0

// placementRank is the alignment of the tensor's elements, or stateRank.
func placementRank(o *Placement) int {
	if o.Part == PartQuantState {
		return stateRank
	}
	bits, known := o.DType.Bits()
	switch {
	case !known:
		return 1
	case bits >= 64:
		return 8
	case bits >= 32:
		return 4
	case bits >= 16:
		return 2
	}
	return 1
}

// outputs lists what the job writes; places come later.
func outputs(j *Job) {
	w := compile(j)
	switch {
	case w.copyBytes:
		in := &j.Inputs[0]
		j.Outputs = []Placement{{Part: PartWeight, Tensor: j.Name, DType: in.DType, Shape: in.Shape, Size: in.Bytes}}
	case !w.quantize:
		j.Outputs = []Placement{{Part: PartWeight, Tensor: j.Name, DType: floatDType(w.to), Shape: j.Shape, Size: w.elems * int64(w.to.Size())}}
	default:
		j.Outputs = quantizedOutputs(j.Name, &w)
	}
}

// quantizedOutputs are the tensors of bnb-format, sections 1a and 1b.
func quantizedOutputs(name string, w *work) []Placement {
	nb := nf4.NumBlocks(w.elems, w.blockSize)
	state := quantState(w)
	out := []Placement{
		{Part: PartWeight, Tensor: name, DType: "U8", Shape: []int64{nf4.PackedLen(w.elems), 1}},
		{Part: PartAbsmax, Tensor: name + bnb.AbsmaxSuffix, DType: "F32", Shape: []int64{nb}},
		{Part: PartQuantMap, Tensor: name + bnb.QuantMapSuffix, DType: "F32", Shape: []int64{16}},
	}
	if w.doubleQuant {
		out[1].DType = "U8"
		out = append(out,
			Placement{Part: PartNestedAbsmax, Tensor: name + bnb.NestedAbsmaxSuffix, DType: "F32", Shape: []int64{doublequant.Groups(nb)}},
			Placement{Part: PartNestedQuantMap, Tensor: name + bnb.NestedQuantMapSuffix, DType: "F32", Shape: []int64{256}})
	}
	out = append(out, Placement{Part: PartQuantState, Tensor: name + bnb.StateSuffix(w.typ), DType: "U8", Shape: []int64{int64(state.MaxJSONLen())}})
	for i := range out {
		bits, _ := out[i].DType.Bits()
		t := out[i].entry()
		out[i].Size = t.Elems() * int64(bits) / 8
	}
	return out
}

// quantState is the state of the job's weight, the offset still unknown.
func quantState(w *work) bnb.QuantState {
	s := bnb.QuantState{Type: w.typ, BlockSize: w.blockSize, DType: w.to, Shape: w.job.Shape}
	if w.doubleQuant {
		s.Nested, s.NestedBlockSize, s.NestedDType = true, doublequant.BlockSize, kernels.F32.String()
	}
	return s
}
