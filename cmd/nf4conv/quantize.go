package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/nf4"
)

const runCodes = "0 success, 2 wrong usage, 4 invalid input, 5 I/O error or full disk (what is done is kept), 130 interrupted (kept)"

func quantizeVerb() verb {
	return verb{
		name: "quantize", usage: "write a bitsandbytes 4-bit checkpoint", args: "SRC OUT", minArgs: 2, maxArgs: 2,
		example: "nf4conv quantize path/to/model model-nf4", codes: runCodes,
		flags: append([]cli.Flag{
			stringFlag("type", "nf4", "4-bit `TYPE`: nf4 or fp4"),
			&cli.IntFlag{Name: "block-size", Value: 64, Usage: "`N` weights share a scale: 32, 64 ... 4096", EnvVars: env("block-size")},
			boolFlag("double-quant", "quantize the scales too, as is done unless told otherwise"),
			boolFlag("no-double-quant", "keep the scales in float32"),
			stringFlag("dtype", "auto", "`DTYPE` of what is not 4-bit: auto (that of the checkpoint), bfloat16 (or bf16) or float16 (or fp16, half)"),
			listFlag("skip", "keep modules that match `GLOB` in 16 bits (repeatable)"),
			listFlag("include", "make modules that match `GLOB` 4-bit too (repeatable)"),
			listFlag("loader", "`NAMES` of those that must be able to load it, with commas between: transformers, transformers5, transformers4, vllm, unsloth (default: transformers,vllm)"),
			boolFlag("strict-arch", "refuse architectures that are not in the table"),
			stringFlag("scale", "absmax", "`METHOD` by which blocks are scaled: absmax, as bitsandbytes does"),
		}, runFlags()...),
		uses: runUses, writes: true,
		run: runQuantize,
	}
}

// runUses are the global flags of verbs that write a checkpoint: all.
var runUses = []string{"verbose", "log-format", "threads", "memory", "device", "progress"}

// runFlags are those of verbs that write a checkpoint.
func runFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("max-shard-size", "5GB", "begin a new file at this `SIZE`"),
		boolFlag("dry-run", "print the plan on stdout (with --quiet too) and write nothing"),
		boolFlag("overwrite", "replace OUT, at the end and in one step"),
		boolFlag("restart", "throw away what an interrupted run left"),
		boolFlag("sha256", "add a SHA-256 of every weight file to the manifest, and SHA256SUMS"),
		boolFlag("card", "add a section about the conversion to README.md"),
		stringFlag("gpu-memory", "", "cap on buffers in the memory of a GPU: one `SIZE`, or one for each, as in 1GiB,512MiB (default: 1GiB or what is free)"),
		boolFlag("no-sync", "do not wait for the disk at the end (for measurements)"),
	}
}

func runQuantize(ctx context.Context, a *app, g *global, c *cli.Context) error {
	o, err := a.quantizeOptions(g, c)
	if err != nil {
		return err
	}
	return a.runPlan(ctx, g, c, func(src *hf.Checkpoint, fileName string, devices []convert.DeviceBudget) (*convert.Plan, error) {
		o.FileName, o.Devices = fileName, devices
		return convert.Quantize(src, o)
	})
}

func (a *app) quantizeOptions(g *global, c *cli.Context) (convert.QuantizeOptions, error) {
	t, err := nf4.Parse(strings.ToLower(c.String("type")))
	if err != nil {
		return convert.QuantizeOptions{}, fault.Usagef("--type: %w", err)
	}
	if err := oneOf("scale", c.String("scale"), "absmax"); err != nil {
		return convert.QuantizeOptions{}, err
	}
	return a.quantizeOptionsOf(g, c, t)
}

// quantizeOptionsOf reads the flags that every verb has which quantizes.
func (a *app) quantizeOptionsOf(g *global, c *cli.Context, t nf4.Type) (convert.QuantizeOptions, error) {
	o := convert.DefaultQuantize()
	o.Type = t
	if o.BlockSize = c.Int("block-size"); nf4.CheckBlockSize(o.BlockSize) != nil {
		return o, fault.Usagef("--block-size: %w", nf4.CheckBlockSize(o.BlockSize))
	}
	_, plain, err := a.either(c, "double-quant", "no-double-quant", "")
	if err != nil {
		return o, err
	}
	// An empty variable counts as one that is not set.
	said := a.given["double-quant"] || os.Getenv(env("double-quant")[0]) != ""
	o.DoubleQuant = !plain && (c.Bool("double-quant") || !said)
	if o.DType, err = dtypeFlag(c, "auto", "bfloat16", "float16"); err != nil {
		return o, err
	}
	o.Skip, o.Include, o.StrictArch = c.StringSlice("skip"), c.StringSlice("include"), c.Bool("strict-arch")
	for _, l := range c.StringSlice("loader") {
		for _, name := range strings.Split(l, ",") {
			o.Loaders = append(o.Loaders, strings.TrimSpace(name))
		}
	}
	if o.MaxShardSize, err = sizeFlag(c, "max-shard-size"); err != nil {
		return o, err
	}
	o.Resources = convert.Resources{Threads: g.threads, Memory: g.memory}
	return o, nil
}

func dequantizeVerb() verb {
	return verb{
		name: "dequantize", usage: "write a 16-bit checkpoint from a 4-bit one (or from FP8, MXFP4)", args: "SRC OUT", minArgs: 2, maxArgs: 2,
		example: "nf4conv dequantize model-nf4 model-16bit", codes: runCodes,
		flags: append([]cli.Flag{stringFlag("dtype", "auto", "`DTYPE` of the output: auto (that of the checkpoint), bfloat16, float16 or float32")}, runFlags()...),
		uses:  runUses, writes: true,
		run: runDequantize,
	}
}

func runDequantize(ctx context.Context, a *app, g *global, c *cli.Context) error {
	o := convert.DefaultDequantize()
	var err error
	if o.DType, err = dtypeFlag(c, "auto", "bfloat16", "float16", "float32"); err != nil {
		return err
	}
	if o.MaxShardSize, err = sizeFlag(c, "max-shard-size"); err != nil {
		return err
	}
	o.Resources = convert.Resources{Threads: g.threads, Memory: g.memory}
	return a.runPlan(ctx, g, c, func(src *hf.Checkpoint, fileName string, devices []convert.DeviceBudget) (*convert.Plan, error) {
		o.FileName, o.Devices = fileName, devices
		return convert.Dequantize(src, o)
	})
}

// dtypeNames are other ways to write the names of dtypes.
var dtypeNames = map[string]string{"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16", "fp32": "float32", "f32": "float32", "float": "float32"}

// dtypeFlag reads --dtype by torch's name or a usual short one, in any case.
func dtypeFlag(c *cli.Context, allowed ...string) (string, error) {
	name := strings.TrimPrefix(strings.ToLower(c.String("dtype")), "torch.")
	name = cmp.Or(dtypeNames[name], name)
	if !slices.Contains(allowed, name) {
		return "", oneOf("dtype", c.String("dtype"), allowed...)
	}
	return name, nil
}

// outFileName is the name of the one output file when OUT is a file, which it is when it
// ends in .safetensors; SRC must then be a file too.
func outFileName(src *hf.Checkpoint, out string) (string, error) {
	isFile := strings.HasSuffix(out, ".safetensors")
	switch {
	case isFile && !src.IsFile():
		return "", fault.WithHint(fault.Usagef("OUT %q is a file and SRC %q a directory", out, src.Path()),
			"a checkpoint directory becomes a directory: configuration and tokenizer belong to it")
	case isFile:
		return filepath.Base(out), nil
	}
	return "", nil
}
