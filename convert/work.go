package convert

import (
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// work is a job's steps in the form the runner and the engines use.
type work struct {
	job       *Job
	elems     int64 // of the output; bytes when copyBytes
	copyBytes bool  // no arithmetic: the unit is the byte
	check     bool  // refuse NaN and infinities
	decode    bool  // read through weights.Tensor
	transpose bool
	cast      bool
	quantize  bool

	read      kernels.Float // format in which chunks arrive at the engine
	storage   kernels.Float // of a byte copy that is checked
	to        kernels.Float // format after the cast (or read)
	typ       nf4.Type
	blockSize int

	doubleQuant bool

	merge *mergeWork // additions between reading and the engine; nil when there are none
}

// compile reads the steps of a planned job.
func compile(j *Job) work {
	w := work{job: j, elems: j.Elems()}
	plain, isFloat := j.Inputs[0].DType.Float()
	w.read, w.storage = plain, plain
	for _, s := range j.Steps {
		switch s.Op {
		case OpCheck:
			w.check = true
		case OpCopy:
			w.copyBytes, w.elems = true, j.Inputs[0].Bytes
		case OpDecode:
			w.decode, w.read, isFloat = true, kernels.F32, true
		case OpTranspose:
			w.transpose = true
		case OpSetRows:
			w.startMerge()
			w.merge.rows = &s
		case OpAdd:
			w.startMerge()
			w.merge.add = &s
		case OpCast:
			f, ok := parseFloat(s.To)
			if !ok {
				panic("convert: internal error: cast to " + s.To)
			}
			w.cast, w.to = true, f
		case OpQuantize:
			t, err := nf4.Parse(s.Type)
			if err != nil {
				panic("convert: internal error: " + err.Error())
			}
			w.quantize, w.typ, w.blockSize, w.doubleQuant = true, t, s.BlockSize, s.DoubleQuant
		}
	}
	if !w.cast {
		w.to = w.read
	}
	if w.merge != nil {
		w.merge.to = w.to
		isFloat = true
	}
	if !w.copyBytes && !isFloat {
		panic("convert: internal error: arithmetic on " + string(j.Inputs[0].DType))
	}
	return w
}

// floatDType is the header's name of a kernel format.
func floatDType(f kernels.Float) safetensors.DType {
	switch f {
	case kernels.BF16:
		return "BF16"
	case kernels.F16:
		return "F16"
	}
	return "F32"
}
