package convert

import (
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

// DefaultMaxShardSize is where a new output file is begun unless told otherwise:
// 5 GB, as transformers 4 does.
const DefaultMaxShardSize = 5_000_000_000

// QuantizeOptions are the options that the bytes of a quantized checkpoint depend on.
type QuantizeOptions struct {
	Type         nf4.Type `json:"-"`
	TypeName     string   `json:"type"` // set by Quantize
	BlockSize    int      `json:"block_size"`
	DoubleQuant  bool     `json:"double_quant"`
	DType        string   `json:"dtype"` // auto, bfloat16 or float16
	Include      []string `json:"include,omitempty"`
	Skip         []string `json:"skip,omitempty"`
	Loaders      []string `json:"loaders,omitempty"`
	MaxShardSize int64    `json:"max_shard_size"` // bytes of tensors
	StrictArch   bool     `json:"strict_arch"`    // refuse architectures that are not in the table
	FileName     string   `json:"file_name,omitempty"`
	Resources    `json:"-"`
}

// DequantizeOptions are the options that the bytes of a dequantized checkpoint depend on.
type DequantizeOptions struct {
	DType        string `json:"dtype"` // auto (what config.json says, or most of the other tensors have), bfloat16, float16 or float32
	MaxShardSize int64  `json:"max_shard_size"`
	FileName     string `json:"file_name,omitempty"`
	Resources    `json:"-"`
}

// Resources bound a run. They never change its output. FileName, in the options,
// asks for one safetensors file of that name instead of a directory.
type Resources struct {
	Threads int   // workers; 0: one per CPU, and two per device
	Memory  int64 // cap on buffers in bytes; 0: DefaultMemory, or more where one tensor needs it
	Devices []DeviceBudget
}

// DeviceBudget is an accelerator that takes part in a run. With none the CPU computes.
type DeviceBudget struct {
	Name   string // "cuda:0"
	Memory int64  // cap on buffers in its memory, bytes
}

// DefaultQuantize are the options of a plain `nf4conv quantize`.
func DefaultQuantize() QuantizeOptions {
	return QuantizeOptions{Type: nf4.NF4, BlockSize: 64, DoubleQuant: true, DType: "auto", MaxShardSize: DefaultMaxShardSize}
}

// DefaultDequantize are the options of a plain `nf4conv dequantize`.
func DefaultDequantize() DequantizeOptions {
	return DequantizeOptions{DType: "auto", MaxShardSize: DefaultMaxShardSize}
}

// parseFloat finds a dtype by its torch name.
func parseFloat(name string) (kernels.Float, bool) {
	for _, f := range []kernels.Float{kernels.F32, kernels.BF16, kernels.F16} {
		if f.String() == name {
			return f, true
		}
	}
	return 0, false
}
