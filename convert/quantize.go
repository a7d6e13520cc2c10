package convert

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
	"github.com/nf4conv/nf4conv/weights"
)

// Quantize plans the conversion of a 16- or 32-bit checkpoint (or one that is FP8 or
// MXFP4) into a bitsandbytes 4-bit checkpoint. src must stay open until the plan has
// been run. Errors are classified: fault.Usage for options, fault.Input for a
// checkpoint that cannot be converted.
func Quantize(src *hf.Checkpoint, o QuantizeOptions) (*Plan, error) {
	if err := nf4.CheckBlockSize(o.BlockSize); err != nil {
		return nil, err
	}
	if o.MaxShardSize <= 0 {
		return nil, fault.Usagef("--max-shard-size must be positive, not %d", o.MaxShardSize)
	}
	o.TypeName = o.Type.String()
	set, err := weights.Open(src)
	if err != nil {
		return nil, err
	}
	if set.Scheme() == "bitsandbytes" {
		return nil, fault.WithHint(
			fault.Inputf("reading %q: the checkpoint is in bitsandbytes 4-bit already", src.Path()),
			"quantize the 16-bit original, or run `nf4conv dequantize` first if only this exists")
	}
	if arch.Unfused(configMap(src)) {
		if set, err = weights.Unfuse(set); err != nil {
			return nil, err
		}
	}
	model, err := arch.Describe(configMap(src), tensorInfos(set), o.StrictArch)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", src.Path(), err)
	}
	if err := model.Complete(); err != nil {
		return nil, fmt.Errorf("reading %q: %w", src.Path(), err)
	}
	sel, err := bnb.Select(model, bnb.SelectOptions{Include: o.Include, Skip: o.Skip, Loaders: o.Loaders, BlockSize: o.BlockSize})
	if err != nil {
		return nil, fmt.Errorf("planning %q: %w", src.Path(), err)
	}
	dtype, err := targetDType(src, set, o.DType)
	if err != nil {
		return nil, err
	}
	p := newPlan("quantize", src, o, model, dtype)
	p.Warnings = append(p.Warnings, sel.Warnings...)
	for _, v := range sel.Verdicts {
		p.Loaders = append(p.Loaders, Loader{Name: v.Loader, Loads: v.Loads, Why: v.Why})
	}
	quantized := 0
	for i, t := range set.Tensors() {
		at := &model.Tensors[i]
		j := newJob(t, at.Module, string(at.Role), sel.Why[i])
		if err := quantizeSteps(&j, t, at, sel.FourBit[i], dtype, o); err != nil {
			return nil, err
		}
		if sel.FourBit[i] {
			quantized++
		}
		p.Jobs = append(p.Jobs, j)
	}
	if quantized == 0 {
		if err := skippedAll(src, model, o); err != nil {
			return nil, err
		}
		return nil, nothingLeft(src, model, sel)
	}
	if cfg := src.Config(); cfg != nil {
		cfg = quantizedConfig(cfg, dtype, sel.SkipModules, o)
		p.Texts = append(p.Texts, Text{Name: "config.json", Content: string(cfg.Encode())})
	}
	return p, p.finish(o.FileName, o.MaxShardSize, o.Resources)
}

// skippedAll is the error when it is --skip that left nothing to quantize, else nil.
func skippedAll(src *hf.Checkpoint, model *arch.Model, o QuantizeOptions) error {
	if len(o.Skip) == 0 {
		return nil
	}
	sel, err := bnb.Select(model, bnb.SelectOptions{Include: o.Include, Loaders: o.Loaders})
	if err != nil {
		return nil //nolint:nilerr // then --skip is not what is in the way
	}
	n := 0
	for _, four := range sel.FourBit {
		if four {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	what := fmt.Sprintf("the %d modules that would", n)
	if n == 1 {
		what = "the one module that would"
	}
	return fault.WithHint(
		fault.Usagef("planning %q: --skip %q leaves nothing to quantize: it keeps %s be 4-bit in 16 bits", src.Path(), o.Skip, what),
		"`nf4conv quantize SRC OUT --dry-run --verbose` without --skip lists them")
}

// nothingLeft says why no weight becomes 4-bit: what holds for most of the linear layers.
func nothingLeft(src *hf.Checkpoint, model *arch.Model, sel *bnb.Selection) error {
	reasons := map[string]int{}
	why, hint := "", "`nf4conv inspect --tensors` shows the role of every tensor"
	for i := range model.Tensors {
		if r := model.Tensors[i].Role; r == arch.RoleLinear || r == arch.RoleConv1D {
			reasons[sel.Why[i]]++
			if why == "" || reasons[sel.Why[i]] > reasons[why] {
				why = sel.Why[i]
			}
			if model.Tensors[i].Subclass && why == model.Tensors[i].Why {
				hint = "transformers 4.57 does load them in 4 bits: --loader transformers4 writes a checkpoint for it alone"
			}
		}
	}
	if why == "" {
		return fault.WithHint(fault.Inputf("planning %q: nothing is left to quantize: no tensor of this checkpoint is a linear layer that every loader would read in 4 bits", src.Path()), "%s", hint)
	}
	return fault.WithHint(fault.Inputf("planning %q: nothing is left to quantize: all %d linear layers stay 16-bit, %d of them because: %s",
		src.Path(), countValues(reasons), reasons[why], strings.TrimPrefix(why, "16-bit: ")), "%s", hint)
}

func countValues(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// quantizeSteps decides what becomes of one tensor.
func quantizeSteps(j *Job, t weights.Tensor, at *arch.Tensor, fourBit bool, dtype kernels.Float, o QuantizeOptions) error {
	stored, isFloat := j.Inputs[0].DType.Float()
	if isEncoded(t) {
		j.Steps = append(j.Steps, Step{Op: OpDecode, Scheme: t.Storage()})
		stored, isFloat = kernels.F32, true
	}
	switch {
	case fourBit && !isFloat:
		err := fault.Inputf("reading %q: tensor %q: dtype %s cannot be quantized; expected F32, BF16 or F16", j.Inputs[0].File, j.Name, j.Inputs[0].DType)
		if j.Inputs[0].DType == "F64" {
			return fault.WithHint(err, "float64 weights are not supported, whatever --dtype says; save the model in float32 first")
		}
		return err
	case fourBit:
		j.Steps = append(j.Steps, Step{Op: OpCheck})
		if at.Transposed {
			j.Steps = append(j.Steps, Step{Op: OpTranspose})
			j.Shape = []int64{j.Shape[1], j.Shape[0]}
		}
		if stored != dtype {
			j.Steps = append(j.Steps, Step{Op: OpCast, To: dtype.String()})
		}
		j.Steps = append(j.Steps, Step{Op: OpQuantize, Type: o.TypeName, BlockSize: o.BlockSize, DoubleQuant: o.DoubleQuant})
	case !isFloat:
		j.Steps = append(j.Steps, Step{Op: OpCopy})
	default:
		keepSteps(j, at, stored, dtype)
	}
	return nil
}

// keepSteps is for a floating tensor that stays as it is. Every such tensor gets the
// model's dtype, because transformers 5 does not cast what it finds in a
// pre-quantized checkpoint; modules that the model itself keeps in float32 stay so.
func keepSteps(j *Job, at *arch.Tensor, stored, dtype kernels.Float) {
	if at.Role != arch.RoleBuffer { // masks hold infinities by right
		j.Steps = append(j.Steps, Step{Op: OpCheck})
	}
	to := dtype
	if at.KeepFP32 && stored == kernels.F32 {
		to = kernels.F32
	}
	switch {
	case len(j.Steps) > 0 && j.Steps[0].Op == OpDecode && to == kernels.F32:
		// decoded values are float32 already
	case stored == to:
		j.Steps = append(j.Steps, Step{Op: OpCopy})
	default:
		j.Steps = append(j.Steps, Step{Op: OpCast, To: to.String()})
	}
}

// quantizedConfig is the source's config.json with the dtype of the output and the
// quantization config in place of whatever was there.
func quantizedConfig(cfg *hf.Config, dtype kernels.Float, skip []string, o QuantizeOptions) *hf.Config {
	cfg = withDType(unquantized(cfg), dtype)
	qc := bnb.NewQuantizationConfig(o.Type, o.DoubleQuant, dtype, skip)
	return cfg.Set("quantization_config", qc.JSON())
}

// newPlan fills in what all verbs share.
func newPlan(verb string, src *hf.Checkpoint, options any, model *arch.Model, dtype kernels.Float) *Plan {
	p := &Plan{
		Schema: PlanSchema, Revision: Revision, Verb: verb, Options: options, src: src,
		Model:    Model{Type: model.Type, Architecture: model.Class, Known: model.Known, DType: dtype.String()},
		Warnings: slices.Concat(src.Warnings(), model.Warnings),
		Source:   Source{Name: filepath.Base(src.Path())}, Texts: []Text{}, Side: []Side{}, Left: []Left{},
	}
	for _, f := range src.Files() {
		h := f.Header()
		p.Source.Files = append(p.Source.Files, SourceFile{Name: filepath.Base(f.Path()), Size: h.FileSize, HeaderBLAKE3: h.Digest})
	}
	for _, s := range src.Side() {
		p.Side = append(p.Side, Side{Name: s.Name, Size: s.Size, path: s.Path})
	}
	for _, s := range src.NotCarried() {
		p.Left = append(p.Left, Left{Name: s.Name, Why: s.Why})
		if fi, err := os.Stat(s.Path); err == nil && !fi.IsDir() && !fi.Mode().IsRegular() {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%q is not carried: %s", s.Name, s.Why))
		}
	}
	if dir := filepath.Dir(src.Path()); src.IsFile() && isCheckpointDir(dir) {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%q is one file of the checkpoint %q, whose configuration and tokenizer are not read; to convert all of it, give the directory",
			filepath.Base(src.Path()), dir))
		for i, w := range p.Warnings { // there is one beside the file
			if rest, ok := strings.CutPrefix(w, "there is no config.json"); ok {
				p.Warnings[i] = "no config.json is read" + rest
			}
		}
	}
	return p
}

// newJob starts the job of a logical tensor.
func newJob(t weights.Tensor, module, role, why string) Job {
	j := Job{Name: t.Name(), Module: module, Role: role, Shape: slices.Clone(t.Shape()), Why: why, logical: t}
	for _, s := range t.Sources() {
		j.Inputs = append(j.Inputs, Ref{
			Name: s.Name, File: filepath.Base(s.File.Path()), DType: s.DType, Shape: s.Shape, Bytes: s.Bytes(), tensor: s,
		})
	}
	return j
}

// isEncoded tells whether a tensor's bytes are not its values: it takes more than one
// physical tensor, or a float format that kernels do not read directly.
func isEncoded(t weights.Tensor) bool {
	return t.Storage() != string(t.Sources()[0].DType)
}

// finish places the outputs, schedules the run and adds up.
func (p *Plan) finish(fileName string, maxShard int64, res Resources) error {
	files, err := place(p.Jobs, fileName, maxShard)
	if err != nil {
		return err
	}
	p.Files = files
	if p.Schedule, err = makeSchedule(p.Jobs, res); err != nil {
		return err
	}
	p.shareInputs()
	p.Totals.Kept = []KeptGroup{}
	kept := map[string]*KeptGroup{}
	for i := range p.Jobs {
		j := &p.Jobs[i]
		n := j.Elems()
		p.Totals.Params += n
		for _, o := range j.Outputs {
			p.Totals.BytesOut += o.Size
		}
		if j.Quantized() {
			p.Totals.Quantized++
			p.Totals.QuantizedParams += n
			continue
		}
		g := kept[j.Why]
		if g == nil {
			g = &KeptGroup{Why: j.Why, Example: j.Name}
			kept[j.Why] = g
		}
		g.Tensors++
		g.Params += n
	}
	for _, g := range kept {
		p.Totals.Kept = append(p.Totals.Kept, *g)
	}
	slices.SortFunc(p.Totals.Kept, func(a, b KeptGroup) int {
		return cmp.Or(cmp.Compare(b.Params, a.Params), cmp.Compare(a.Why, b.Why))
	})
	return nil
}

// shareInputs adds up the input bytes. The experts of a fused tensor read a part of it
// each: it counts once, in equal shares.
func (p *Plan) shareInputs() {
	type key struct{ file, name string }
	jobs := map[key]int64{}
	for i := range p.Jobs {
		for _, in := range p.Jobs[i].Inputs {
			if jobs[key{in.File, in.Name}]++; jobs[key{in.File, in.Name}] == 1 {
				p.Totals.BytesIn += in.Bytes
			}
		}
	}
	for i := range p.Jobs {
		for _, in := range p.Jobs[i].Inputs {
			p.Jobs[i].share += in.Bytes / jobs[key{in.File, in.Name}]
		}
	}
}

// configMap is config.json as arch wants it; nil where there is none.
func configMap(src *hf.Checkpoint) map[string]any {
	if cfg := src.Config(); cfg != nil {
		return cfg.Map()
	}
	return nil
}

// tensorInfos is what arch needs to know of the logical tensors.
func tensorInfos(set *weights.Set) []arch.TensorInfo {
	var out []arch.TensorInfo
	for _, t := range set.Tensors() {
		out = append(out, arch.TensorInfo{Name: t.Name(), Shape: t.Shape(), Float: isFloating(t)})
	}
	return out
}

func isFloating(t weights.Tensor) bool {
	d := t.Sources()[0].DType
	_, plain := d.Float()
	return plain || isEncoded(t) || d == safetensors.DType("F64")
}
