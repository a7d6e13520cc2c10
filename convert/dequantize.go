package convert

import (
	"fmt"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/weights"
)

// Dequantize plans the conversion of a quantized checkpoint (bitsandbytes 4-bit, FP8
// with block scales, MXFP4) into an ordinary 16- or 32-bit one. Weights that were
// transposed on the way in (Conv1D) are transposed back.
func Dequantize(src *hf.Checkpoint, o DequantizeOptions) (*Plan, error) {
	if o.MaxShardSize <= 0 {
		return nil, fault.Usagef("--max-shard-size must be positive, not %d", o.MaxShardSize)
	}
	set, err := weights.Open(src)
	if err != nil {
		return nil, err
	}
	if set.Scheme() == "none" {
		return nil, fault.Inputf("reading %q: nothing to dequantize: the checkpoint has no 4-bit, FP8 or MXFP4 weights", src.Path())
	}
	if arch.Unfused(configMap(src)) {
		if set, err = weights.Fuse(set); err != nil {
			return nil, fmt.Errorf("reading %q: %w", src.Path(), err)
		}
	}
	model, err := arch.Describe(configMap(src), tensorInfos(set), false)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", src.Path(), err)
	}
	dtype, err := ownDType(src, set)
	if o.DType != "auto" {
		f, ok := parseFloat(o.DType)
		if !ok {
			return nil, fault.Usagef("--dtype %q: expected auto, bfloat16, float16 or float32", o.DType)
		}
		dtype, err = f, nil
	}
	if err != nil {
		return nil, err
	}
	p := newPlan("dequantize", src, o, model, dtype)
	for i, t := range set.Tensors() {
		at := &model.Tensors[i]
		j := newJob(t, at.Module, string(at.Role), "kept as it is")
		stored, isFloat := j.Inputs[0].DType.Float()
		switch {
		case isEncoded(t):
			j.Why = "decoded from " + t.Storage()
			j.Steps = append(j.Steps, Step{Op: OpDecode, Scheme: t.Storage()})
			// A Conv1D weight is stored [out, in] in 4 bits and [in, out] in 16.
			if at.Transposed && set.Scheme() == "bitsandbytes" {
				j.Steps = append(j.Steps, Step{Op: OpTranspose})
				j.Shape = []int64{j.Shape[1], j.Shape[0]}
			}
			if dtype != kernels.F32 {
				j.Steps = append(j.Steps, Step{Op: OpCast, To: dtype.String()})
			}
		case !isFloat || stored == dtype || (at.KeepFP32 && stored == kernels.F32) || o.DType == "auto":
			j.Steps = []Step{{Op: OpCopy}}
		default:
			j.Steps = []Step{{Op: OpCast, To: dtype.String()}}
		}
		p.Jobs = append(p.Jobs, j)
	}
	if cfg := src.Config(); cfg != nil {
		cfg = withDType(unquantized(cfg).Delete("quantization_config"), dtype)
		p.Texts = append(p.Texts, Text{Name: "config.json", Content: string(cfg.Encode())})
	}
	return p, p.finish(o.FileName, o.MaxShardSize, o.Resources)
}
