package convert

import (
	"encoding/json"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/weights"
)

// PlanSchema names the JSON form of a [Plan].
const PlanSchema = "nf4conv.plan/1"

// Revision counts changes of what the same plan writes. It is part of a plan's
// identity, so that a run interrupted under one revision is not finished under
// another.
const Revision = 1

// Plan says everything about a conversion before a weight is read.
type Plan struct {
	Schema   string   `json:"schema"`
	Revision int      `json:"revision"`
	Verb     string   `json:"verb"` // quantize, dequantize or merge
	Source   Source   `json:"source"`
	Options  any      `json:"options"` // the options that the bytes depend on
	Model    Model    `json:"model"`
	Files    []File   `json:"files"`
	Jobs     []Job    `json:"jobs"`
	Texts    []Text   `json:"texts"` // small files the plan wrote itself
	Side     []Side   `json:"side"`  // files carried from the source
	Left     []Left   `json:"left"`  // files and directories that are not; no part of the identity
	Totals   Totals   `json:"totals"`
	Loaders  []Loader `json:"loaders,omitempty"`
	Merge    *Merging `json:"merge,omitempty"` // of adapters
	Warnings []string `json:"warnings,omitempty"`

	Schedule Schedule `json:"schedule"` // how it is run; not part of the identity

	src     *hf.Checkpoint
	minKept float64 // of every delta; below it a merge fails
}

// Source identifies the input.
type Source struct {
	Name  string       `json:"name"` // last element of the path
	Files []SourceFile `json:"files"`
}

// SourceFile identifies a weight file by its header and size. Contents are
// identified tensor by tensor in the journal and the manifest.
type SourceFile struct {
	Name         string          `json:"name"`
	Size         int64           `json:"size"`
	HeaderBLAKE3 treehash.Digest `json:"header_blake3"`
}

// Model is what people want to know about the model.
type Model struct {
	Type         string `json:"type"`         // config.json's model_type
	Architecture string `json:"architecture"` // its class
	Known        bool   `json:"known"`        // found in the table of architectures
	DType        string `json:"dtype"`        // of floating tensors that are not quantized
}

// File is one weight file of the output. The data section starts at HeaderSize;
// only the quant-state JSON at its end has a size that is known late, so DataSize is
// a bound that is at most a few bytes per quantized weight too large.
type File struct {
	Name       string `json:"name"`
	HeaderSize int64  `json:"header_size"` // bytes, length prefix and padding included
	DataSize   int64  `json:"data_size"`
	StateBegin int64  `json:"state_begin"` // offset in the data section of the first quant-state JSON
}

// Ref is a tensor of the source.
type Ref struct {
	Name  string            `json:"name"`
	File  string            `json:"file"`
	DType safetensors.DType `json:"dtype"`
	Shape []int64           `json:"shape"`
	Bytes int64             `json:"bytes"`

	tensor hf.Tensor
}

// Job is one logical tensor and what becomes of it.
type Job struct {
	Name    string      `json:"name"` // of the tensor, as in the output
	Module  string      `json:"module"`
	Role    string      `json:"role"`
	Inputs  []Ref       `json:"inputs"`
	Shape   []int64     `json:"shape"` // logical, after a transposition
	Steps   []Step      `json:"steps"`
	Outputs []Placement `json:"outputs"`
	Why     string      `json:"why"` // for people: "4-bit: linear", "16-bit: router"

	logical  weights.Tensor
	share    int64 // of Totals.BytesIn, for progress
	replaced bool  // an adapter has the tensor in place of the base
}

// Elems is the number of logical elements.
func (j *Job) Elems() int64 {
	n := int64(1)
	for _, d := range j.Shape {
		n *= d
	}
	return n
}

// Op is what a step does.
type Op string

// The steps, in the order in which they may follow each other. A job has either
// Copy alone (with an optional Check), or an arithmetic chain.
const (
	OpCheck     Op = "check"     // refuse NaN and infinities
	OpCopy      Op = "copy"      // bytes as they are
	OpDecode    Op = "decode"    // 4-bit, FP8 or MXFP4 storage to float32
	OpTranspose Op = "transpose" // swap the two dimensions
	OpSetRows   Op = "set_rows"  // rows of an adapter in place of some of the weight's
	OpAdd       Op = "add"       // deltas of adapters, in float32
	OpCast      Op = "cast"      // to another floating dtype, to nearest even
	OpQuantize  Op = "quantize"  // to 4 bits
)

// Step is one step with its parameters, by value.
type Step struct {
	Op          Op      `json:"op"`
	Scheme      string  `json:"scheme,omitempty"`       // decode: the storage
	To          string  `json:"to,omitempty"`           // cast, and add (of the sum): torch name of the dtype
	Type        string  `json:"type,omitempty"`         // quantize: nf4 or fp4
	BlockSize   int     `json:"block_size,omitempty"`   // quantize
	DoubleQuant bool    `json:"double_quant,omitempty"` // quantize
	Rounding    string  `json:"rounding,omitempty"`     // add: once or peft-safe
	Terms       []Term  `json:"terms,omitempty"`        // add: one for each adapter
	Rows        []int64 `json:"rows,omitempty"`         // set_rows: which, in the order of the input
	Input       int     `json:"input,omitempty"`        // set_rows: index among the job's inputs
}

// Part says which tensor of a job's output a placement holds.
type Part string

// The parts of a quantized weight; a tensor that is not quantized is PartWeight alone.
const (
	PartWeight         Part = "weight"
	PartAbsmax         Part = "absmax"
	PartQuantMap       Part = "quant_map"
	PartNestedAbsmax   Part = "nested_absmax"
	PartNestedQuantMap Part = "nested_quant_map"
	PartQuantState     Part = "quant_state"
)

// Placement is the place of one output tensor: Size bytes at Offset of the data
// section of Files[File]. For PartQuantState, Size is a bound and the offset is
// settled at the end.
type Placement struct {
	Part   Part              `json:"part"`
	Tensor string            `json:"tensor"`
	File   int               `json:"file"`
	DType  safetensors.DType `json:"dtype"`
	Shape  []int64           `json:"shape"`
	Offset int64             `json:"offset"`
	Size   int64             `json:"size"`
}

// Text is a small output file whose contents the plan knows.
type Text struct {
	Name    string `json:"name"`
	Content string `json:"content"`
}

// Side is a file carried unchanged.
type Side struct {
	Name string `json:"name"`
	Size int64  `json:"size"`

	path string
}

// Left is a file of the source, or a directory (its name ends in a slash), that is not
// carried.
type Left struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Totals are sums over the jobs. Bytes are those of tensors, headers not counted.
type Totals struct {
	Params          int64       `json:"params"`
	QuantizedParams int64       `json:"quantized_params"`
	Quantized       int         `json:"quantized_modules"`
	BytesIn         int64       `json:"bytes_in"`
	BytesOut        int64       `json:"bytes_out"` // bound, see File
	Kept            []KeptGroup `json:"kept"`      // what stays as it is, by reason, largest first
}

// KeptGroup counts tensors that are not quantized for the same reason.
type KeptGroup struct {
	Why     string `json:"why"`
	Tensors int    `json:"tensors"`
	Params  int64  `json:"params"`
	Example string `json:"example"`
}

// Loader is what one consumer will do with the output.
type Loader struct {
	Name  string `json:"name"`
	Loads bool   `json:"loads"`
	Why   string `json:"why,omitempty"`
}

// Digest identifies the plan: equal digests mean equal output, given equal weights. It
// covers everything the bytes depend on, as JSON; the schedule is not part of it. Jobs
// are hashed one by one, so that a plan of many tensors is not held twice.
func (p *Plan) Digest() (treehash.Digest, error) {
	q := *p
	q.Schedule, q.Warnings, q.Loaders, q.Left, q.Jobs = Schedule{}, nil, nil, nil, nil
	head, err := json.Marshal(&q)
	if err != nil {
		return treehash.Digest{}, err
	}
	first := treehash.Sum(head)
	sums := first[:]
	for i := range p.Jobs {
		job, err := json.Marshal(&p.Jobs[i])
		if err != nil {
			return treehash.Digest{}, err
		}
		sum := treehash.Sum(job)
		sums = append(sums, sum[:]...)
	}
	return treehash.Sum(sums), nil
}

// Quantized tells whether the job writes a 4-bit weight.
func (j *Job) Quantized() bool {
	return len(j.Steps) > 0 && j.Steps[len(j.Steps)-1].Op == OpQuantize
}
