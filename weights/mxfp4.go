package weights

import (
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// mxfp4 is a stack of expert matrices in MXFP4 as gpt-oss stores them: P_blocks U8
// [E, out, in/32, 16] with two float4_e2m1 a byte, low nibble first, and P_scales U8
// [E, out, in/32] with exponents of base 2. Logically it is P of shape [E, in, out], the
// order of transformers (integrations/mxfp4.py, convert_moe_packed_tensors).
type mxfp4 struct {
	blocks, scales hf.Tensor
	name           string
}

const (
	blocksSuffix = "_blocks"
	scalesSuffix = "_scales"
	mxBlock      = 32 // elements per scale
)

// newMXFP4 returns nil when t has nothing to do with MXFP4.
func newMXFP4(c *hf.Checkpoint, t hf.Tensor) (Tensor, error) {
	if name, ok := strings.CutSuffix(t.Name, scalesSuffix); ok && t.DType == "U8" {
		switch b, found := c.Lookup(name + blocksSuffix); {
		case !found:
			return nil, refuse(t, "the MXFP4 blocks %q it scales are missing", name+blocksSuffix)
		case b.DType != "U8":
			return nil, refuse(b, "dtype %s; MXFP4 blocks are U8", b.DType)
		}
	}
	name, ok := strings.CutSuffix(t.Name, blocksSuffix)
	if !ok || t.DType != "U8" {
		return nil, nil
	}
	scales, found := c.Lookup(name + scalesSuffix)
	if !found {
		return nil, refuse(t, "MXFP4 blocks need %q, which is missing", name+scalesSuffix)
	}
	s := t.Shape
	if len(s) != 4 || s[3] != mxBlock/2 || t.Elems() == 0 {
		return nil, refuse(t, "shape %v; expected [experts, out, in/32, 16]", s)
	}
	if z := scales.Shape; scales.DType != "U8" || len(z) != 3 || z[0] != s[0] || z[1] != s[1] || z[2] != s[2] {
		return nil, refuse(scales, "%s %v; expected U8 %v", scales.DType, z, s[:3])
	}
	return &mxfp4{t, scales, name}, nil
}

func (m *mxfp4) Name() string    { return m.name }
func (m *mxfp4) Storage() string { return "mxfp4" }

// Format: two bits of mantissa and any power of two.
func (m *mxfp4) Format() kernels.Float { return kernels.BF16 }
func (m *mxfp4) Sources() []hf.Tensor  { return []hf.Tensor{m.blocks, m.scales} }

func (m *mxfp4) Shape() []int64 {
	s := m.blocks.Shape
	return []int64{s[0], s[2] * mxBlock, s[1]}
}

// ReadF32 gathers: what is a row here is a column of the stored matrix, so that for a run
// of rows a strip is read of every stored row.
func (m *mxfp4) ReadF32(dst []float32, off int64) error {
	shape := m.Shape()
	in, out := shape[1], shape[2]
	for len(dst) > 0 {
		e, rest := off/(in*out), off%(in*out)
		n := min(int64(len(dst)), in*out-rest) // within one expert
		if err := m.readExpert(dst[:n], e, rest, in, out); err != nil {
			return err
		}
		dst, off = dst[n:], off+n
	}
	return nil
}

func (m *mxfp4) readExpert(dst []float32, e, off, in, out int64) error {
	i0, i1 := off/out, (off+int64(len(dst))-1)/out+1 // rows of the logical matrix
	g0, g1 := i0/mxBlock, (i1-1)/mxBlock+1
	bytes := make([]byte, (g1-g0)*mxBlock/2)
	exps := make([]byte, g1-g0)
	scale := make([]float32, g1-g0)
	values := make([]float32, (g1-g0)*mxBlock)
	for o := range out {
		row := e*out + o
		if err := m.blocks.ReadAt(bytes, (row*in+g0*mxBlock)/2); err != nil {
			return err
		}
		if err := m.scales.ReadAt(exps, row*in/mxBlock+g0); err != nil {
			return err
		}
		cast.E2M1ToF32(values, bytes)
		cast.E8M0ToF32(scale, exps)
		for i := i0; i < i1; i++ {
			at := i*out + o - off
			if at >= 0 && at < int64(len(dst)) {
				dst[at] = values[i-g0*mxBlock] * scale[i/mxBlock-g0]
			}
		}
	}
	return nil
}
