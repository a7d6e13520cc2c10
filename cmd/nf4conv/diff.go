package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/compare"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/term"
	"github.com/nf4conv/nf4conv/internal/units"
)

func diffVerb() verb {
	return verb{
		name: "diff", usage: "compare two checkpoints tensor by tensor, 16-bit or 4-bit", args: "A B", minArgs: 2, maxArgs: 2,
		example: "nf4conv diff path/to/model model-nf4", codes: "0 success (with --exit-code: no difference), 2 wrong usage, 3 differences (with --exit-code), 4 invalid input, 5 I/O error, 130 interrupted",
		flags: []cli.Flag{
			boolFlag("exit-code", "exit with 3 when anything differs"),
			&cli.IntFlag{Name: "limit", Value: 20, Usage: "print at most `N` tensors; 0 prints all", EnvVars: env("limit")},
		},
		uses: []string{"threads"},
		run:  runDiff,
	}
}

func runDiff(ctx context.Context, a *app, g *global, c *cli.Context) (err error) {
	if c.Int("limit") < 0 {
		return fault.Usagef("--limit %d: expected 0 or more", c.Int("limit"))
	}
	var sides [2]*hf.Checkpoint
	for i := range sides {
		s, err := hf.Open(c.Args().Get(i))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		sides[i] = s
	}
	workers := g.threads
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	r, err := compare.Checkpoints(ctx, sides[0], sides[1], workers)
	if err != nil {
		return err
	}
	if g.json {
		err = a.result(r)
	} else {
		err = a.print(diffText(r, c.Int("limit"), term.Width(a.stdout)))
	}
	if err == nil && c.Bool("exit-code") && !r.Equal {
		return &gateError{fault.Gatef("%q and %q differ", r.A.Path, r.B.Path)}
	}
	return err
}

// gateError is a verdict whose JSON document was printed already.
type gateError struct{ error }

func (e *gateError) Unwrap() error { return e.error }

func diffText(r *compare.Result, limit, width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "a  %s: %s, quantized: %s\nb  %s: %s, quantized: %s\n", visible(r.A.Path), units.Things(r.A.Tensors, "tensor"), r.A.Scheme,
		visible(r.B.Path), units.Things(r.B.Tensors, "tensor"), r.B.Scheme)
	if r.Equal {
		return b.String() + "no difference\n"
	}
	b.WriteString(wrap("", fmt.Sprintf("%s with equal values, %d differ, %d only in a, %d only in b; relative error over all %.5f",
		units.Things(r.Same, "tensor"), len(r.Tensors), len(r.OnlyA), len(r.OnlyB), r.RelError), 2, width))
	if len(r.Config) > 0 {
		b.WriteString(wrap("", "config.json differs in "+visible(strings.Join(r.Config, ", ")), 2, width))
	}
	for _, n := range r.OnlyA {
		fmt.Fprintf(&b, "only in a  %s\n", visible(n))
	}
	for _, n := range r.OnlyB {
		fmt.Fprintf(&b, "only in b  %s\n", visible(n))
	}
	wide := 9 // of the column of storages
	for _, t := range r.Tensors {
		wide = max(wide, len(t.StorageA+" "+t.StorageB))
	}
	if len(r.Tensors) > 0 {
		fmt.Fprintf(&b, "%-9s %-9s %-8s %-*s %s\n", "rel error", "max abs", "cosine", wide, "stored", "tensor")
	}
	for i, t := range r.Tensors {
		if limit > 0 && i == limit {
			fmt.Fprintf(&b, "and %d more (--limit 0 prints all)\n", len(r.Tensors)-i)
			break
		}
		stored := t.StorageA + " " + t.StorageB
		switch t.Kind {
		case "values":
			fmt.Fprintf(&b, "%-9.5f %-9.3g %-8.5f %-*s %s\n", t.RelError, t.MaxAbs, t.Cosine, wide, stored, visible(t.Name))
		case "shape":
			fmt.Fprintf(&b, "shapes %v and %v: %s\n", t.ShapeA, t.ShapeB, visible(t.Name))
		default:
			fmt.Fprintf(&b, "%s different (%s): %s\n", units.Things(t.Different, "byte"), stored, visible(t.Name))
		}
	}
	return b.String()
}
