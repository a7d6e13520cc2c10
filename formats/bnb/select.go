package bnb

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// SelectOptions say which modules people want in 4 bits and who must load the result.
type SelectOptions struct {
	// Include and Skip are globs on module paths: * stands for any characters, dots
	// included, ? for one. Skip wins.
	Include, Skip []string
	// Loaders are of "transformers" (5 and 4.57), "transformers5", "vllm" and "unsloth"; none
	// means transformers and vllm.
	Loaders []string
	// BlockSize is the one that weights will have; 0 stands for 64.
	BlockSize int
}

// Selection is the decision for every tensor, and the skip list that makes every
// loader see it the same way.
type Selection struct {
	FourBit     []bool   // aligned with the model's tensors
	Why         []string // for people: "4-bit: linear", "16-bit: router"
	SkipModules []string // llm_int8_skip_modules
	Warnings    []string
	Verdicts    []LoaderVerdict
}

// LoaderVerdict is what a loader does with the selection.
type LoaderVerdict struct {
	Loader string
	Loads  bool
	Why    string
}

// selector is a selection in the making.
type selector struct {
	m       *arch.Model
	loaders []arch.Loader
	unsloth bool
	four    []bool
	why     []string
	warn    []string
}

// Select decides which weights become 4-bit and proves, by simulating the loaders over
// all module paths, that each finds 4-bit weights exactly where they are. Where loaders
// would disagree it keeps more in 16 bits and warns; where that does not help it refuses
// (fault.Input). Unusable options are fault.Usage.
func Select(m *arch.Model, o SelectOptions) (*Selection, error) {
	s := &selector{m: m, four: make([]bool, len(m.Tensors)), why: make([]string, len(m.Tensors))}
	if err := s.parseLoaders(o.Loaders); err != nil {
		return nil, err
	}
	if err := s.choose(o); err != nil {
		return nil, err
	}
	s.keepUnsloth()
	if err := s.checkExperts(); err != nil {
		return nil, err
	}
	// Keeping one module may oblige others; every round keeps at least one more.
	for {
		s.keepFused()
		keys := s.skipList()
		clash, err := s.simulate(keys)
		if err != nil {
			return nil, err
		}
		if len(clash) == 0 {
			s.warnShapes(o.BlockSize)
			return &Selection{FourBit: s.four, Why: s.why, SkipModules: keys, Warnings: s.warn, Verdicts: s.verdicts()}, nil
		}
		for tensor, why := range clash {
			s.keep(tensor, why)
		}
		s.warn = append(s.warn, fmt.Sprintf("%d more modules stay 16-bit because loaders would read the skip list differently", len(clash)))
	}
}

func (s *selector) parseLoaders(names []string) error {
	if len(names) == 0 {
		names = []string{"transformers", "vllm"}
	}
	add := func(ls ...arch.Loader) {
		for _, l := range ls {
			if !slices.Contains(s.loaders, l) {
				s.loaders = append(s.loaders, l)
			}
		}
	}
	for _, n := range names {
		switch n {
		case "transformers":
			add(arch.Transformers5, arch.Transformers4)
		case "transformers5":
			add(arch.Transformers5)
		case "transformers4":
			add(arch.Transformers4)
		case "vllm":
			add(arch.VLLM)
		case "unsloth":
			add(arch.Transformers5)
			s.unsloth = true
		default:
			return fault.Usagef("--loader %q: expected transformers, transformers5, transformers4, vllm or unsloth", n)
		}
	}
	return nil
}

func (s *selector) has(l arch.Loader) bool { return slices.Contains(s.loaders, l) }

// choose starts from the table of architectures and applies the globs.
func (s *selector) choose(o SelectOptions) error {
	include, err := compileGlobs("--include", o.Include)
	if err != nil {
		return err
	}
	skip, err := compileGlobs("--skip", o.Skip)
	if err != nil {
		return err
	}
	for i := range s.m.Tensors {
		t := &s.m.Tensors[i]
		s.four[i], s.why[i] = t.Quantizable, t.Why
		if t.Subclass && !s.has(arch.Transformers5) {
			s.four[i] = true
		}
		if s.four[i] {
			s.why[i] = "4-bit: linear"
		}
		if g := include.match(t.Module); g != "" && !t.Quantizable && isMatrix(t) {
			if err := s.mayInclude(t, g); err != nil {
				return err
			}
			s.four[i], s.why[i] = true, "4-bit: --include "+g
		}
		if g := skip.match(t.Module); g != "" && s.four[i] {
			s.four[i], s.why[i] = false, "16-bit: --skip "+g
		}
	}
	return firstError(include.unused(s.m), skip.unused(s.m))
}

// isMatrix tells whether a tensor is one that --include may mean.
func isMatrix(t *arch.Tensor) bool {
	return strings.HasSuffix(t.Name, ".weight") && t.Role != arch.RoleNorm && t.Role != arch.RoleBuffer
}

// mayInclude refuses what no loader could read in 4 bits.
func (s *selector) mayInclude(t *arch.Tensor, glob string) error {
	refuse := func(why string) error {
		return fault.Inputf("--include %q: module %q: %s", glob, t.Module, why)
	}
	switch t.Role {
	case arch.RoleExpert:
		if s.has(arch.Transformers5) {
			return fault.WithHint(refuse("an expert; transformers 5 fuses experts into parameters that bitsandbytes does not quantize"),
				"--loader vllm writes a checkpoint for vLLM alone")
		}
	case arch.RoleRouter:
		if s.has(arch.Transformers5) {
			return refuse("a router, which is no linear layer in transformers 5")
		}
	case arch.RoleHead:
		if s.m.Tied {
			return refuse("the output head is the input embedding, which is no linear layer")
		}
	case arch.RoleTower, arch.RoleProjector, arch.RoleOther, arch.RoleLinear:
	default:
		return refuse("it is no linear layer (" + strings.TrimPrefix(t.Why, "16-bit: ") + ")")
	}
	if t.KeepFP32 {
		return refuse("the model keeps it in float32")
	}
	return nil
}

// checkExperts refuses 4-bit experts beside 16-bit ones: vLLM stacks those of a layer.
func (s *selector) checkExperts() error {
	if !s.has(arch.VLLM) {
		return nil
	}
	first := map[string]int{} // by what stands before ".experts."
	for i := range s.m.Tensors {
		t := &s.m.Tensors[i]
		if t.Role != arch.RoleExpert || !isMatrix(t) {
			continue
		}
		layer, _, _ := strings.Cut(t.Module, ".experts.")
		k, seen := first[layer]
		if !seen {
			first[layer] = i
		} else if s.four[i] != s.four[k] {
			return fault.WithHint(
				fault.Inputf("modules %q and %q: one would be 4-bit and the other 16-bit; vLLM wants the experts of a layer to be alike", s.m.Tensors[k].Module, t.Module),
				"choose all of them, as in --include '*.experts.*'")
		}
	}
	return nil
}

func (s *selector) keep(i int, why string) {
	if s.four[i] {
		s.four[i], s.why[i] = false, why
	}
}

// keepUnsloth keeps what Unsloth would not load in 4 bits.
func (s *selector) keepUnsloth() {
	if !s.unsloth {
		return
	}
	for i := range s.m.Tensors {
		for _, k := range unslothKept {
			if strings.Contains("."+s.m.Tensors[i].Module+".", "."+k+".") {
				s.keep(i, "16-bit: Unsloth keeps "+k)
			}
		}
	}
}

// keepFused keeps the rest of a fused layer of vLLM when a part of it is kept.
func (s *selector) keepFused() {
	if !s.has(arch.VLLM) {
		return
	}
	byModule := map[string]int{}
	for i := range s.m.Tensors {
		if strings.HasSuffix(s.m.Tensors[i].Name, ".weight") {
			byModule[s.m.Tensors[i].Module] = i
		}
	}
	widened := 0
	for i := range s.m.Tensors {
		t := &s.m.Tensors[i]
		if s.four[i] || !strings.HasSuffix(t.Name, ".weight") {
			continue
		}
		for _, p := range fusedWith(t.Module) {
			if k, ok := byModule[p]; ok && s.four[k] {
				s.keep(k, "16-bit: vLLM fuses it with "+t.Module[strings.LastIndexByte(t.Module, '.')+1:]+", which stays 16-bit")
				widened++
			}
		}
	}
	if widened > 0 {
		s.warn = append(s.warn, fmt.Sprintf("%d more modules stay 16-bit because vLLM fuses them with one that does (--loader transformers leaves them 4-bit)", widened))
	}
}

// simulate asks every loader about every module. It returns the 4-bit weights that a
// loader would not find, and fails where a loader would expect 4 bits and find 16.
func (s *selector) simulate(keys []string) (clash map[int]string, err error) {
	clash = map[int]string{}
	for _, l := range s.loaders {
		match, err := NewMatcher(l, keys)
		if err != nil {
			return nil, fault.Inputf("%w", err)
		}
		for _, mod := range s.m.Modules(l) {
			skipped := match.Skips(mod.Path)
			four := mod.Tensor >= 0 && s.four[mod.Tensor]
			switch {
			case four && skipped:
				clash[mod.Tensor] = fmt.Sprintf("16-bit: %s would skip it with this skip list", l)
			case four && !mod.Linear && !mod.Either:
				return nil, fault.Inputf("module %q: %s does not load it in 4 bits", mod.Path, l)
			case !four && mod.Linear && !skipped && !mod.Maybe:
				return nil, fault.Inputf("module %q stays 16-bit, and %s would expect 4 bits whatever skip list is written", mod.Path, l)
			}
		}
	}
	return clash, nil
}

func (s *selector) verdicts() []LoaderVerdict {
	var out []LoaderVerdict
	for _, l := range []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM} {
		v := LoaderVerdict{Loader: string(l), Loads: true, Why: "finds 4-bit weights exactly where they are (simulated over all modules)"}
		switch {
		case !s.has(l) && l == arch.Transformers5 && s.anySubclass():
			v.Loads, v.Why = false, "leaves its linear layers in 16 bits, which are a subclass of nn.Linear"
		case !s.has(l):
			v.Loads, v.Why = false, "not asked for (--loader)"
		case !s.m.Known:
			v.Why = "expected to load; the architecture is not in the table"
		}
		out = append(out, v)
	}
	return out
}

// anySubclass tells whether a 4-bit weight is of a subclass of nn.Linear.
func (s *selector) anySubclass() bool {
	for i := range s.four {
		if s.four[i] && s.m.Tensors[i].Subclass {
			return true
		}
	}
	return false
}

// warnShapes points at a limit of bitsandbytes' own kernels.
func (s *selector) warnShapes(blockSize int) {
	if blockSize == 0 {
		blockSize = 64
	}
	n, example := 0, ""
	for i := range s.m.Tensors {
		if t := &s.m.Tensors[i]; s.four[i] && t.InFeatures%int64(blockSize) != 0 {
			n++
			example = fmt.Sprintf("%s has %d", t.Module, t.InFeatures)
		}
	}
	if n > 0 {
		s.warn = append(s.warn, fmt.Sprintf("%d 4-bit modules have in_features that the block size %d does not divide (%s): right on GPUs and here, but on CPUs with AVX-512 bitsandbytes 0.50 fails on them or computes with wrong weights", n, blockSize, example))
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
