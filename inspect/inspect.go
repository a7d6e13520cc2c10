// Package inspect says what a checkpoint is: its architecture, its tensors and their
// roles, how it is quantized, and what loaders would make of it. It never fails on what
// the converter would refuse; it says so instead.
package inspect

import (
	"cmp"
	"slices"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/weights"
)

// Schema names the JSON form of a [Report].
const Schema = "nf4conv.inspect/1"

// Report is what is known of a checkpoint without reading its weights.
type Report struct {
	Schema       string        `json:"schema"`
	Path         string        `json:"path"`
	ModelType    string        `json:"model_type"`
	Architecture string        `json:"architecture"`
	Known        bool          `json:"known"`
	DType        string        `json:"dtype"`
	Scheme       string        `json:"scheme"`  // none, bitsandbytes, fp8, mxfp4, or the name of another
	Refused      string        `json:"refused"` // why quantize and dequantize refuse it; empty if they do not
	Params       int64         `json:"params"`
	Bytes        int64         `json:"bytes"`
	Bits         float64       `json:"bits_per_weight"`
	Files        []File        `json:"files"`
	Storages     []Count       `json:"storages"`
	Roles        []Count       `json:"roles"`
	Quantization *Quantization `json:"quantization,omitempty"`
	Loaders      []Loader      `json:"loaders"`
	Side         []string      `json:"side_files"`
	NotCarried   []NotCarried  `json:"not_carried"`
	Warnings     []string      `json:"warnings"`
	Tensors      []Tensor      `json:"tensors,omitempty"`
}

// File is a weight file.
type File struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	Tensors int    `json:"tensors"`
}

// Count adds up tensors of one kind.
type Count struct {
	Name    string `json:"name"`
	Tensors int    `json:"tensors"`
	Params  int64  `json:"params"`
	Bytes   int64  `json:"bytes"`
}

// Quantization is how a bitsandbytes checkpoint is quantized.
type Quantization struct {
	Type         string   `json:"type"`
	BlockSizes   []int    `json:"block_sizes"`
	DoubleQuant  bool     `json:"double_quant"`
	ComputeDType string   `json:"compute_dtype"`
	Modules      int      `json:"modules"`
	SkipModules  []string `json:"skip_modules"`
}

// Loader is what a loader makes of the checkpoint.
type Loader struct {
	Name     string   `json:"name"`
	Agrees   bool     `json:"agrees"` // it expects 4 bits exactly where they are
	Problems []string `json:"problems"`
}

// NotCarried is a file that conversions leave behind.
type NotCarried struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Tensor is a logical tensor.
type Tensor struct {
	Name    string  `json:"name"`
	Storage string  `json:"storage"`
	Shape   []int64 `json:"shape"`
	Bytes   int64   `json:"bytes"`
	Role    string  `json:"role"`
	Would   string  `json:"would"` // what quantize would do with it
}

// Checkpoint describes c; withTensors adds the list of tensors.
func Checkpoint(c *hf.Checkpoint, withTensors bool) (*Report, error) {
	r := &Report{
		Schema: Schema, Path: c.Path(), Scheme: "none", Loaders: []Loader{}, Side: []string{}, NotCarried: []NotCarried{},
		Warnings: append([]string{}, c.Warnings()...),
	}
	if cfg := c.Config(); cfg != nil {
		r.ModelType, r.Architecture = cfg.ModelType(), cfg.Architecture()
		r.DType, _, _ = cfg.DType()
	}
	for _, f := range c.Files() {
		r.Files = append(r.Files, File{f.Path(), f.Header().FileSize, len(f.Header().Tensors)})
	}
	for _, s := range c.Side() {
		r.Side = append(r.Side, s.Name)
	}
	for _, s := range c.NotCarried() {
		r.NotCarried = append(r.NotCarried, NotCarried{s.Name, s.Why})
	}
	tensors := r.open(c)
	r.describe(c, tensors, withTensors)
	if r.Scheme == "bitsandbytes" {
		return r, r.fourBit(c)
	}
	return r, nil
}

// logical is a tensor to be counted.
type logical struct {
	name, storage string
	shape         []int64
	bytes         int64
	float         bool
}

// open lists logical tensors, or physical ones where the scheme is not read.
func (r *Report) open(c *hf.Checkpoint) []logical {
	var out []logical
	set, err := weights.Open(c)
	if err != nil {
		r.Refused = err.Error()
		if s := weights.Foreign(c); s != "" {
			r.Scheme = s
		}
		for _, t := range c.Tensors() {
			_, float := t.DType.Float()
			out = append(out, logical{t.Name, string(t.DType), t.Shape, t.Bytes(), float})
		}
		return out
	}
	r.Scheme = set.Scheme()
	for _, t := range set.Tensors() {
		l := logical{name: t.Name(), storage: t.Storage(), shape: t.Shape()}
		_, plain := t.Sources()[0].DType.Float()
		l.float = plain || t.Storage() != string(t.Sources()[0].DType)
		for _, s := range t.Sources() {
			l.bytes += s.Bytes()
		}
		out = append(out, l)
	}
	return out
}

func (r *Report) describe(c *hf.Checkpoint, ts []logical, withTensors bool) {
	var config map[string]any
	if c.Config() != nil {
		config = c.Config().Map()
	}
	var infos []arch.TensorInfo
	for _, t := range ts {
		infos = append(infos, arch.TensorInfo{Name: t.name, Shape: t.shape, Float: t.float})
	}
	m, err := arch.Describe(config, infos, false)
	if err == nil && m.Known {
		err = m.Complete()
	}
	if err != nil && r.Refused == "" {
		r.Refused = err.Error()
	}
	if m != nil {
		r.Known = m.Known
		r.Warnings = append(r.Warnings, m.Warnings...)
	}
	for i, t := range ts {
		n := int64(1)
		for _, d := range t.shape {
			n *= d
		}
		r.Params += n
		r.Bytes += t.bytes
		role, would := "unknown", ""
		if m != nil && i < len(m.Tensors) {
			role, would = string(m.Tensors[i].Role), m.Tensors[i].Why
			if m.Tensors[i].Quantizable {
				would = "4-bit: linear"
			}
		}
		add(&r.Storages, t.storage, n, t.bytes)
		add(&r.Roles, role, n, t.bytes)
		if withTensors {
			r.Tensors = append(r.Tensors, Tensor{t.name, t.storage, t.shape, t.bytes, role, would})
		}
	}
	if r.Params > 0 {
		r.Bits = 8 * float64(r.Bytes) / float64(r.Params)
	}
	for _, list := range [][]Count{r.Storages, r.Roles} {
		slices.SortStableFunc(list, func(a, b Count) int { return cmp.Compare(b.Bytes, a.Bytes) })
	}
}

func add(list *[]Count, name string, params, bytes int64) {
	i := slices.IndexFunc(*list, func(c Count) bool { return c.Name == name })
	if i < 0 {
		*list = append(*list, Count{Name: name})
		i = len(*list) - 1
	}
	c := &(*list)[i]
	c.Tensors, c.Params, c.Bytes = c.Tensors+1, c.Params+params, c.Bytes+bytes
}

// fourBit reports on a bitsandbytes checkpoint and asks the loaders' matchers about it.
func (r *Report) fourBit(c *hf.Checkpoint) error {
	ws, err := bnb.Find(c)
	if err != nil {
		return err
	}
	qc, bad := bnb.ParseQuantizationConfig(c.Config())
	q := &Quantization{Modules: len(ws), SkipModules: []string{}}
	names := map[string]bool{}
	for i := range ws {
		s := &ws[i].QuantState
		q.Type, q.DoubleQuant = s.Type.String(), s.Nested
		if !slices.Contains(q.BlockSizes, s.BlockSize) {
			q.BlockSizes = append(q.BlockSizes, s.BlockSize)
		}
		names[ws[i].Name] = true
	}
	r.Quantization = q
	if bad != nil {
		r.Warnings = append(r.Warnings, bad.Error()+": transformers will not load it")
		return nil
	}
	if qc == nil {
		r.Warnings = append(r.Warnings, "the tensors are bitsandbytes 4-bit, but config.json has no quantization_config: transformers will not load it")
		return nil
	}
	q.ComputeDType, q.SkipModules = qc.ComputeDType, append([]string{}, qc.SkipModules...)
	if q.Type != qc.Type.String() || q.DoubleQuant != qc.DoubleQuant {
		r.Warnings = append(r.Warnings, "quantization_config and the tensors differ in type or double quantization: transformers 4 will not load it")
	}
	return r.askLoaders(c, qc, names)
}

// askLoaders compares what each loader would expect with what is there.
func (r *Report) askLoaders(c *hf.Checkpoint, qc *bnb.QuantizationConfig, four map[string]bool) error {
	if qc.SkipModules == nil {
		r.Warnings = append(r.Warnings, "llm_int8_skip_modules is null: every loader uses its own defaults, which are not simulated")
		return nil
	}
	set, err := weights.Open(c)
	if err != nil {
		return err
	}
	var infos []arch.TensorInfo
	for _, t := range set.Tensors() {
		infos = append(infos, arch.TensorInfo{Name: t.Name(), Shape: t.Shape(), Float: true})
	}
	m, err := arch.Describe(c.Config().Map(), infos, false)
	if err != nil {
		return nil //nolint:nilerr // Refused says it, and what no loader would load is not asked of any
	}
	for _, l := range []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM} {
		match, err := bnb.NewMatcher(l, qc.SkipModules)
		if err != nil {
			r.Loaders = append(r.Loaders, Loader{string(l), false, []string{err.Error()}})
			continue
		}
		res := Loader{Name: string(l), Agrees: true, Problems: []string{}}
		for _, mod := range m.Modules(l) {
			there := mod.Tensor >= 0 && four[m.Tensors[mod.Tensor].Name]
			expects := mod.Linear && !match.Skips(mod.Path)
			if there != expects && !mod.Either && !mod.Maybe {
				res.Agrees = false
				text := mod.Path + " is 16-bit and would be expected in 4 bits"
				if there {
					text = mod.Path + " is 4-bit and would be expected in 16 bits"
				}
				res.Problems = append(res.Problems, text)
			}
		}
		r.Loaders = append(r.Loaders, res)
	}
	return nil
}
