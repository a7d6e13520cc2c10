package weights

import (
	"encoding/json"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// fp8 is a matrix of float8_e4m3fn with one scale per block of rows x cols elements: the
// form of DeepSeek-V3, which transformers calls fine-grained FP8
// (integrations/finegrained_fp8.py, Fp8Dequantize). A value is code * scale in float32.
// Blocks at the right and lower edge may be short, as in DeepSeek's own code and vLLM;
// transformers 5.23 divides rows and columns evenly among the scales instead, and refuses
// what does not divide.
type fp8 struct {
	weight     hf.Tensor
	scale      hf.Tensor
	rows, cols int64 // of a block
}

const scaleSuffix = "_scale_inv"

// newFP8 returns nil when t is neither an FP8 weight nor a scale.
func newFP8(c *hf.Checkpoint, t hf.Tensor) (Tensor, error) {
	if name, ok := strings.CutSuffix(t.Name, scaleSuffix); ok {
		switch w, found := c.Lookup(name); {
		case !found:
			return nil, refuse(t, "the weight %q it scales is missing", name)
		case w.DType != "F8_E4M3": // FP8 kept as U8, or values that are scaled already
			return nil, refuse(t, "the weight %q it scales is %s; expected F8_E4M3", name, w.DType)
		}
	}
	switch t.DType {
	case "F8_E4M3":
	case "F8_E5M2":
		return nil, refuse(t, "float8_e5m2 weights are not read; expected float8_e4m3fn with %s", scaleSuffix)
	case "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4":
		return nil, refuse(t, "%s tensors are not read; expected F8_E4M3 with %s", t.DType, scaleSuffix)
	default:
		return nil, nil
	}
	scale, ok := c.Lookup(t.Name + scaleSuffix)
	if !ok {
		return nil, fault.WithHint(
			refuse(t, "an FP8 weight needs its scales in %q, which is missing", t.Name+scaleSuffix),
			"FP8 with one scale per tensor or channel (compressed-tensors, fbgemm) is not read; start from the 16-bit checkpoint")
	}
	rows, cols, err := fp8Block(c)
	if err != nil {
		return nil, err
	}
	if len(t.Shape) != 2 || t.Elems() == 0 {
		return nil, refuse(t, "an FP8 weight of shape %v; expected a matrix", t.Shape)
	}
	want := []int64{(t.Shape[0] + rows - 1) / rows, (t.Shape[1] + cols - 1) / cols}
	if len(scale.Shape) != 2 || scale.Shape[0] != want[0] || scale.Shape[1] != want[1] {
		return nil, refuse(scale, "shape %v; expected %v for blocks of %dx%d of %v", scale.Shape, want, rows, cols, t.Shape)
	}
	if _, isFloat := scale.DType.Float(); !isFloat {
		return nil, refuse(scale, "dtype %s; expected F32, BF16 or F16", scale.DType)
	}
	return &fp8{t, scale, rows, cols}, nil
}

// fp8Block is weight_block_size of the quantization config, which composite models may
// keep with their text model; 128x128 when not said.
func fp8Block(c *hf.Checkpoint) (rows, cols int64, err error) {
	rows, cols = 128, 128
	if c.Config() == nil {
		return rows, cols, nil
	}
	v, ok := c.Config().Get("quantization_config", "weight_block_size")
	if !ok || v == nil {
		v, ok = c.Config().Get("text_config", "quantization_config", "weight_block_size")
	}
	if !ok || v == nil {
		return rows, cols, nil
	}
	list, _ := v.([]any)
	var size [2]int64
	for i := range size {
		if len(list) == 2 {
			if n, isNumber := list[i].(json.Number); isNumber {
				size[i], _ = n.Int64()
			}
		}
		if size[i] <= 0 || size[i] > 1<<20 {
			return 0, 0, fault.Inputf("reading %q: config.json: quantization_config: weight_block_size: expected two positive integers, found %v", c.Path(), v)
		}
	}
	return size[0], size[1], nil
}

func (f *fp8) Name() string          { return f.weight.Name }
func (f *fp8) Shape() []int64        { return f.weight.Shape }
func (f *fp8) Storage() string       { return "fp8-block" }
func (f *fp8) Format() kernels.Float { return kernels.F32 }
func (f *fp8) Sources() []hf.Tensor  { return []hf.Tensor{f.weight, f.scale} }

func (f *fp8) ReadF32(dst []float32, off int64) error {
	buf := make([]byte, len(dst))
	if err := f.weight.ReadAt(buf, off); err != nil {
		return err
	}
	cast.E4M3ToF32(dst, buf)
	k := f.weight.Shape[1]
	perRow := f.scale.Shape[1]
	var scales []float32
	have := int64(-1) // row of blocks whose scales are in scales
	for i := int64(0); i < int64(len(dst)); {
		row, col := (off+i)/k, (off+i)%k
		if row/f.rows != have {
			have = row / f.rows
			scales = make([]float32, perRow)
			if err := (plain{f.scale}).ReadF32(scales, have*perRow); err != nil {
				return err
			}
		}
		// One run: to the end of the block, the row or the range.
		n := min(f.cols-col%f.cols, k-col, int64(len(dst))-i)
		s := scales[col/f.cols]
		for j := range n {
			dst[i+j] *= s
		}
		i += n
	}
	return nil
}
