package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/adapters"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/term"
	"github.com/nf4conv/nf4conv/internal/units"
)

func extractVerb() verb {
	return verb{
		name: "extract", usage: "find the LoRA adapter that turns one checkpoint into another", args: "BASE TUNED OUT", minArgs: 2, maxArgs: 3,
		example: "nf4conv extract path/to/base path/to/tuned my-adapter --rank 32",
		codes:   "0 success, 2 wrong usage, 4 invalid input, or a difference that is no adapter, 5 I/O error, 130 interrupted (nothing is kept)",
		flags: []cli.Flag{
			&cli.IntFlag{Name: "rank", Usage: "`N` singular values of every layer, at most", EnvVars: env("rank")},
			stringFlag("energy", "", "as few as keep this `SHARE` of the squared delta of every layer"),
			boolFlag("from-4bit", "the base is a 4-bit checkpoint: extract against what it dequantizes to"),
			stringFlag("residual-of", "", "extract what the 4-bit `CANDIDATE` lost of the 16-bit model: the arguments are then MODEL OUT"),
			boolFlag("dry-run", "print the plan on stdout (with --quiet too) and write nothing"),
		},
		uses: []string{"verbose", "threads"}, run: runExtract,
	}
}

func runExtract(ctx context.Context, a *app, g *global, c *cli.Context) (err error) {
	o := adapters.ExtractOptions{Rank: c.Int("rank"), From4Bit: c.Bool("from-4bit"), Threads: g.threads}
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if a.given["rank"] && o.Rank < 1 {
		return fault.Usagef("--rank %d: expected 1 or more", o.Rank)
	}
	if s := c.String("energy"); s != "" {
		if o.Energy, err = strconv.ParseFloat(s, 64); err != nil || !(o.Energy > 0 && o.Energy <= 1) {
			return fault.Usagef("--energy %q: expected a share above 0 and up to 1", s)
		}
	}
	args := c.Args().Slice()
	if candidate := c.String("residual-of"); candidate != "" {
		if len(args) != 2 {
			return fault.WithHint(fault.Usagef("extract --residual-of: expected MODEL OUT, found %d arguments", len(args)),
				"nf4conv extract path/to/model my-correction --residual-of path/to/model-nf4 --rank 16")
		}
		o.From4Bit = true
		args = []string{candidate, args[0], args[1]}
	}
	if len(args) != 3 {
		return fault.WithHint(fault.Usagef("extract: expected BASE TUNED OUT, found %d arguments", len(args)), "nf4conv extract path/to/base path/to/tuned my-adapter --rank 32")
	}
	var sides [2]*hf.Checkpoint
	for i := range sides {
		if sides[i], err = hf.Open(args[i]); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sides[i].Close()) }()
	}
	plan, err := adapters.Extract(sides[0], sides[1], o)
	if err != nil {
		return err
	}
	for _, w := range plan.Warnings() {
		a.say("warning: %s", w)
	}
	doc := plan.Describe(args[2])
	if !c.Bool("dry-run") {
		if !a.quiet {
			fmt.Fprint(a.stderr, extractionText(doc, g.verbose, term.Width(a.stderr)))
		}
		if doc, err = plan.Run(ctx, args[2], &adapters.Progress{}); err != nil {
			return err
		}
	}
	switch {
	case g.json:
		return a.result(doc)
	case doc.DryRun:
		return a.print(extractionText(doc, g.verbose, term.Width(a.stdout)))
	case !a.quiet:
		a.say("done: %s", doc.Out)
		fmt.Fprint(a.stderr, extractedText(doc, g.verbose, term.Width(a.stderr)))
	}
	return nil
}

// extractionText is the plan.
func extractionText(e *adapters.Extraction, verbose bool, width int) string {
	var b strings.Builder
	b.WriteString(wrap("", visible(fmt.Sprintf("extract %s - %s -> %s", e.Tuned, e.Base, e.Out)), 2, width))
	line := labelled(&b, width)
	parts := map[string]int{}
	for i := range e.Layers {
		parts[e.Layers[i].Part]++
	}
	line("compare", "%s: %d for factors, %d biases, %d to be saved whole where they differ", units.Things(len(e.Layers), "tensor"),
		parts[adapters.PartFactors], parts[adapters.PartBias], parts[adapters.PartWhole])
	var rule []string
	if e.Options.Energy > 0 {
		rule = append(rule, fmt.Sprintf("as few as keep %g of the squared delta", e.Options.Energy))
	}
	if e.Options.Rank > 0 {
		rule = append(rule, fmt.Sprintf("at most %d", e.Options.Rank))
	}
	line("rank", "%s", strings.Join(rule, ", "))
	if verbose {
		for i := range e.Layers {
			fmt.Fprintf(&b, "    %-60s %-14s %s\n", visible(e.Layers[i].Tensor), fmt.Sprint(e.Layers[i].Shape), e.Layers[i].Part)
		}
	}
	return b.String()
}

// extractedText is what became of it.
func extractedText(e *adapters.Extraction, verbose bool, width int) string {
	var b strings.Builder
	line := labelled(&b, width)
	t := &e.Totals
	line("adapter", "%s of factors of rank %d at most, %s replaced, %s parameters; %d of %s did not change", units.Things(t.Factors, "pair"), t.MaxRank,
		units.Things(t.Replaced, "tensor"), units.Count(t.Params), t.Unchanged, units.Things(t.Compared, "tensor"))
	line("kept", "%.4f of the squared delta; what is left is %.4f of the delta", t.Energy, t.Residual)
	layers := slices.DeleteFunc(slices.Clone(e.Layers), func(l adapters.Layer) bool { return l.Part != adapters.PartFactors })
	slices.SortStableFunc(layers, func(a, b adapters.Layer) int { return cmp.Compare(b.Residual, a.Residual) })
	if !verbose {
		layers = layers[:min(3, len(layers))]
	}
	for i, l := range layers {
		line([]string{"residual", ""}[min(i, 1)], "%.4f %s (rank %d, |delta|/|weight| %.3g)", l.Residual, visible(strings.TrimSuffix(l.Tensor, ".weight")), l.Rank, l.Relative)
	}
	labelled(&b, 0)("next", "nf4conv merge %s merged --adapter %s", quote(e.Base)+map[bool]string{true: " --from-4bit"}[e.Options.From4Bit], quote(e.Out))
	return b.String()
}
