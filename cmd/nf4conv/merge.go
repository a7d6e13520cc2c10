package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/nf4"
)

func mergeVerb() verb {
	quantizeOnly := []cli.Flag{
		&cli.IntFlag{Name: "block-size", Value: 64, Usage: "with --quantize: `N` weights share a scale", EnvVars: env("block-size")},
		boolFlag("double-quant", "with --quantize: quantize the scales too (the default)"),
		boolFlag("no-double-quant", "with --quantize: keep the scales in float32"),
		stringFlag("dtype", "auto", "with --quantize: `DTYPE` of what is not 4-bit"),
		listFlag("skip", "with --quantize: keep modules that match `GLOB` in 16 bits (repeatable)"),
		listFlag("include", "with --quantize: make modules that match `GLOB` 4-bit too (repeatable)"),
		listFlag("loader", "with --quantize: who must be able to load it (default: transformers,vllm)"),
		boolFlag("strict-arch", "with --quantize: refuse architectures that are not in the table"),
	}
	flags := append([]cli.Flag{
		listFlag("adapter", "LoRA adapter `DIR`, or DIR=WEIGHT (repeatable; deltas are summed before the one rounding)"),
		stringFlag("rounding", convert.RoundOnce, "`HOW` to round: once, or peft-safe (each delta first, as PEFT's safe_merge)"),
		stringFlag("quantize", "", "quantize the sum in the same pass: `TYPE` nf4 or fp4"),
		boolFlag("from-4bit", "merge into what a 4-bit base dequantizes to"),
		stringFlag("min-delta-kept", "", "fail when a tensor keeps less than this `SHARE` of its delta after rounding"),
		stringFlag("tokenizer", "auto", "`WHOSE` tokenizer and chat template to write: base, adapter, or auto (the adapter's when it resized the vocabulary)"),
	}, quantizeOnly...)
	return verb{
		name: "merge", usage: "add LoRA adapters to a checkpoint, and quantize the sum in the same pass", args: "BASE OUT", minArgs: 2, maxArgs: 2,
		example: "nf4conv merge path/to/model merged-nf4 --adapter path/to/adapter --quantize nf4",
		codes:   "0 success, 2 wrong usage, 3 less than --min-delta-kept was left, 4 invalid input or an adapter that cannot be merged, 5 I/O error or full disk (what is done is kept), 130 interrupted (kept)",
		flags:   append(flags, runFlags()...), uses: runUses, writes: true, run: runMerge,
	}
}

func runMerge(ctx context.Context, a *app, g *global, c *cli.Context) (err error) {
	o, err := a.mergeOptions(g, c)
	if err != nil {
		return err
	}
	adapters, err := openAdapters(c.StringSlice("adapter"))
	defer func() {
		for i := range adapters {
			err = errors.Join(err, adapters[i].Adapter.Close())
		}
	}()
	if err != nil {
		return err
	}
	o.Adapters = adapters
	return a.runPlan(ctx, g, c, func(src *hf.Checkpoint, fileName string, devices []convert.DeviceBudget) (*convert.Plan, error) {
		o.FileName, o.Devices = fileName, devices
		return convert.Merge(src, o)
	})
}

func (a *app) mergeOptions(g *global, c *cli.Context) (convert.MergeOptions, error) {
	o := convert.DefaultMerge()
	o.Rounding, o.From4Bit, o.Tokenizer = c.String("rounding"), c.Bool("from-4bit"), c.String("tokenizer")
	if err := oneOf("rounding", o.Rounding, convert.RoundOnce, convert.RoundPEFTSafe); err != nil {
		return o, err
	}
	if err := oneOf("tokenizer", o.Tokenizer, "auto", "base", "adapter"); err != nil {
		return o, err
	}
	if s := c.String("min-delta-kept"); s != "" {
		share, err := strconv.ParseFloat(s, 64)
		if err != nil || !(share > 0 && share <= 1) {
			return o, fault.Usagef("--min-delta-kept %q: expected a share above 0 and up to 1", s)
		}
		o.MinKept = share
	}
	var err error
	if s := c.String("quantize"); s != "" {
		q, err := a.quantizeFlags(g, c, s)
		if err != nil {
			return o, err
		}
		o.Quantize = &q
	} else if err := a.withoutQuantize(); err != nil {
		return o, err
	}
	if o.MaxShardSize, err = sizeFlag(c, "max-shard-size"); err != nil {
		return o, err
	}
	o.Resources = convert.Resources{Threads: g.threads, Memory: g.memory}
	return o, nil
}

// quantizeFlags reads the flags that merge shares with quantize.
func (a *app) quantizeFlags(g *global, c *cli.Context, typ string) (convert.QuantizeOptions, error) {
	t, err := nf4.Parse(strings.ToLower(typ))
	if err != nil {
		return convert.QuantizeOptions{}, fault.Usagef("--quantize: %w", err)
	}
	return a.quantizeOptionsOf(g, c, t)
}

// withoutQuantize refuses flags that would have no effect.
func (a *app) withoutQuantize() error {
	for _, name := range []string{"block-size", "double-quant", "no-double-quant", "dtype", "skip", "include", "loader", "strict-arch"} {
		if a.given[name] {
			return fault.Usagef("--%s has an effect only with --quantize", name)
		}
	}
	return nil
}

// openAdapters opens DIR or DIR=WEIGHT. What follows the last "=" is a weight when it is a
// number and there is no directory of the whole name.
func openAdapters(args []string) ([]convert.MergeAdapter, error) {
	if len(args) == 0 {
		return nil, fault.WithHint(fault.Usagef("no adapter was given"), "--adapter DIR names one; it may be repeated")
	}
	var out []convert.MergeAdapter
	for _, s := range args {
		dir, weight := s, 1.0
		if i := strings.LastIndexByte(s, '='); i > 0 {
			if _, err := os.Stat(s); err != nil {
				w, err := strconv.ParseFloat(s[i+1:], 64)
				if err != nil {
					return out, fault.Usagef("--adapter %q: expected DIR or DIR=WEIGHT, and %q is not a number", s, s[i+1:])
				}
				dir, weight = s[:i], w
			}
		}
		a, err := peft.Open(dir)
		if err != nil {
			return out, err
		}
		out = append(out, convert.MergeAdapter{Adapter: a, Weight: weight})
	}
	return out, nil
}

// quantizes are the options of a plan that writes 4-bit weights.
func quantizes(p *convert.Plan) (convert.QuantizeOptions, bool) {
	switch o := p.Options.(type) {
	case convert.QuantizeOptions:
		return o, true
	case convert.MergeOptions:
		if o.Quantize != nil {
			return *o.Quantize, true
		}
	}
	return convert.QuantizeOptions{}, false
}

// showAdapters says what a plan merges.
func showAdapters(line func(label, format string, args ...any), p *convert.Plan) {
	if p.Merge == nil {
		return
	}
	o, _ := p.Options.(convert.MergeOptions)
	for i, s := range p.Merge.Adapters {
		what := fmt.Sprintf("%s%s: %s of factors", times(s.Weight), s.Name, units.Things(s.Pairs, "pair"))
		if s.Replaced > 0 {
			what += ", " + units.Things(s.Replaced, "replacement")
		}
		line([]string{"adapter", ""}[min(i, 1)], "%s", what)
	}
	line("merge", "into %s, rounding %s, tokenizer of %s", units.Things(p.Merge.Tensors, "tensor"), o.Rounding, tokenizerOf(p))
}

// times is how an adapter counts, unless that is once.
func times(weight float64) string {
	if weight == 1 {
		return ""
	}
	return fmt.Sprintf("%g times ", weight)
}

func tokenizerOf(p *convert.Plan) string {
	if p.Merge.Tokenizer == "base" {
		return "the base"
	}
	return p.Merge.Tokenizer
}

// keptDelta says how much of the adapters arrived.
func keptDelta(m *convert.MergeResult) string {
	text := fmt.Sprintf("%.4f kept", m.Kept)
	if len(m.Tensors) > 0 {
		t := &m.Tensors[0]
		text += fmt.Sprintf("; least %.4f %s (|delta|/|weight| %.3g)", t.Kept, strings.TrimSuffix(t.Tensor, ".weight"), t.Relative)
	}
	if n := m.Unchanged + m.Zero; n > 0 {
		text += fmt.Sprintf("; %d of %d tensors did not change", n, len(m.Tensors))
	}
	return text
}
