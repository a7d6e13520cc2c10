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
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/term"
	"github.com/nf4conv/nf4conv/internal/units"
)

func combineVerb() verb {
	return verb{
		name: "combine", usage: "make one LoRA adapter of several, or a smaller one of one (--rank, --energy)", args: "OUT", minArgs: 1, maxArgs: 1,
		example: "nf4conv combine mixed --adapter path/to/a=0.7 --adapter path/to/b=0.3",
		codes:   "0 success, 2 wrong usage, 4 invalid input, or adapters that no adapter can stand for, 5 I/O error, 130 interrupted (nothing is kept)",
		flags: []cli.Flag{
			listFlag("adapter", "LoRA adapter `DIR`, or DIR=WEIGHT (repeatable)"),
			stringFlag("method", "", "`HOW` to combine: "+strings.Join(adapters.Methods, ", ")+" (default: cat, or svd with --rank or --energy)"),
			&cli.IntFlag{Name: "rank", Usage: "svd forms: `N` singular values of every layer, at most (default: the largest rank of the adapters)", EnvVars: env("rank")},
			stringFlag("energy", "", "svd forms: as few as keep this `SHARE` of the squared delta of every layer"),
			stringFlag("density", "", "ties, dare and magnitude_prune: the `SHARE` of elements that is kept"),
			stringFlag("majority-sign", "", "ties forms: `WHICH` sign wins, by total or by frequency (default: total)"),
			stringFlag("seed", "", "dare forms: the `NUMBER` that the masks are drawn from (default: 0)"),
			boolFlag("dry-run", "print the plan on stdout (with --quiet too) and write nothing"),
		},
		uses: []string{"verbose", "threads"}, run: runCombine,
	}
}

func runCombine(ctx context.Context, a *app, g *global, c *cli.Context) (err error) {
	o, err := a.combineOptions(g, c)
	if err != nil {
		return err
	}
	opened, err := openAdapters(c.StringSlice("adapter"))
	defer func() {
		for i := range opened {
			err = errors.Join(err, opened[i].Adapter.Close())
		}
	}()
	if err != nil {
		return err
	}
	var inputs []adapters.CombineInput
	for i := range opened {
		inputs = append(inputs, adapters.CombineInput{Adapter: opened[i].Adapter, Weight: opened[i].Weight})
	}
	plan, err := adapters.Combine(inputs, o)
	if err != nil {
		return err
	}
	for _, w := range plan.Warnings() {
		a.say("warning: %s", w)
	}
	out := c.Args().First()
	doc := plan.Describe(out)
	if !c.Bool("dry-run") {
		if !a.quiet {
			fmt.Fprint(a.stderr, combinationText(doc, g.verbose, term.Width(a.stderr)))
		}
		if doc, err = plan.Run(ctx, out); err != nil {
			return err
		}
	}
	switch {
	case g.json:
		return a.result(doc)
	case doc.DryRun:
		return a.print(combinationText(doc, g.verbose, term.Width(a.stdout)))
	case !a.quiet:
		a.say("done: %s", doc.Out)
		fmt.Fprint(a.stderr, combinedText(doc, g.verbose, term.Width(a.stderr)))
	}
	return nil
}

func (a *app) combineOptions(g *global, c *cli.Context) (o adapters.CombineOptions, err error) {
	o = adapters.CombineOptions{Method: c.String("method"), Rank: c.Int("rank"), MajoritySign: c.String("majority-sign"), Threads: g.threads}
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if a.given["rank"] && o.Rank < 1 {
		return o, fault.Usagef("--rank %d: expected 1 or more", o.Rank)
	}
	for _, share := range []struct {
		name string
		to   *float64
	}{{"energy", &o.Energy}, {"density", &o.Density}} {
		if s := c.String(share.name); s != "" {
			if *share.to, err = strconv.ParseFloat(s, 64); err != nil || !(*share.to > 0 && *share.to <= 1) {
				return o, fault.Usagef("--%s %q: expected a share above 0 and up to 1", share.name, s)
			}
		}
	}
	if o.Method == "" {
		o.Method = "cat"
		if o.Rank > 0 || o.Energy > 0 {
			o.Method = "svd"
		}
	}
	if adapters.Elects(o.Method) {
		o.MajoritySign = cmp.Or(o.MajoritySign, "total")
	}
	if s := c.String("seed"); s != "" {
		if !strings.HasPrefix(o.Method, "dare") {
			return o, fault.Usagef("--seed has an effect only with the dare forms")
		}
		if o.Seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			return o, fault.Usagef("--seed %q: expected a whole number from 0 on", s)
		}
	}
	return o, nil
}

// combinationText is the plan.
func combinationText(d *adapters.Combination, verbose bool, width int) string {
	var b strings.Builder
	b.WriteString(wrap("nf4conv: ", visible("combine -> "+d.Out), 2, width))
	line := labelled(&b, width)
	for i := range d.Adapters {
		x := &d.Adapters[i]
		line([]string{"adapter", ""}[min(i, 1)], "%s%s: %s of factors", times(x.Weight), x.Name, units.Things(x.Pairs, "pair"))
	}
	method := d.Options.Method
	if adapters.Prunes(method) {
		method += fmt.Sprintf(", density %g", d.Options.Density)
	}
	if strings.HasPrefix(method, "dare") {
		method += fmt.Sprintf(", seed %d", d.Options.Seed)
	}
	if d.Options.MajoritySign != "" {
		method += ", majority sign by " + d.Options.MajoritySign
	}
	if d.Options.Energy > 0 {
		method += fmt.Sprintf(", as few values as keep %g", d.Options.Energy)
	}
	if d.Options.Rank > 0 {
		method += fmt.Sprintf(", rank %d at most", d.Options.Rank)
	}
	line("method", "%s", method)
	line("layers", "%s, %s taken over", units.Things(len(d.Layers), "pair"), units.Things(d.Totals.Replaced, "tensor"))
	if verbose {
		for i := range d.Layers {
			l := &d.Layers[i]
			fmt.Fprintf(&b, "    %-60s of %s, ranks add up to %d\n", visible(l.Module), units.Things(l.Adapters, "adapter"), l.RanksIn)
		}
	}
	return b.String()
}

// combinedText is what became of it.
func combinedText(d *adapters.Combination, verbose bool, width int) string {
	var b strings.Builder
	line := labelled(&b, width)
	t := &d.Totals
	line("adapter", "%s of factors of rank %d at most, %s parameters", units.Things(t.Pairs, "pair"), t.MaxRank, units.Count(t.Params))
	line("distance", "%.3g of the weighted sum of the deltas", t.Distance)
	layers := slices.Clone(d.Layers)
	slices.SortStableFunc(layers, func(a, b adapters.CombinedLayer) int { return cmp.Compare(b.Distance, a.Distance) })
	if !verbose {
		layers = layers[:min(3, len(layers))]
	}
	for _, l := range layers {
		line("", "%.3g %s (rank %d, energy %.4f)", l.Distance, visible(l.Module), l.Rank, l.Energy)
	}
	labelled(&b, 0)("next", "nf4conv merge BASE merged --adapter %s", quote(d.Out))
	return b.String()
}
