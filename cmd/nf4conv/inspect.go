package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/inspect"
	"github.com/nf4conv/nf4conv/internal/term"
	"github.com/nf4conv/nf4conv/internal/units"
)

func inspectVerb() verb {
	return verb{
		name: "inspect", usage: "say what a checkpoint is and what loaders make of it", args: "PATH", minArgs: 1, maxArgs: 1,
		example: "nf4conv inspect model-nf4 --tensors",
		flags:   []cli.Flag{boolFlag("tensors", "list every tensor")},
		run: func(_ context.Context, a *app, g *global, c *cli.Context) (err error) {
			src, err := hf.Open(c.Args().First())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, src.Close()) }()
			r, err := inspect.Checkpoint(src, c.Bool("tensors"))
			if err != nil {
				return err
			}
			if g.json {
				return a.result(r)
			}
			return a.print(inspectText(r, term.Width(a.stdout)))
		},
	}
}

func inspectText(r *inspect.Report, width int) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		b.WriteString(wrap(fmt.Sprintf("%-13s ", label), visible(fmt.Sprintf(format, args...)), 14, width))
	}
	known := ""
	if !r.Known {
		known = ", not in the table of architectures"
	}
	line("path", "%s", r.Path)
	line("architecture", "%s (%s)%s", orNone(r.Architecture), orNone(r.ModelType), known)
	line("size", "%s parameters in %s of tensors, %.2f bits each; config dtype %s", units.Count(r.Params), units.Bytes(r.Bytes), r.Bits, orNone(r.DType))
	for _, f := range r.Files {
		line("file", "%s, %s, %s", filepath.Base(f.Name), units.Bytes(f.Bytes), units.Things(f.Tensors, "tensor"))
	}
	line("quantized", "%s", r.Scheme)
	if q := r.Quantization; q != nil {
		line("", "%s, block size %v, double quantization %t, compute dtype %s, %s", q.Type, q.BlockSizes, q.DoubleQuant, orNone(q.ComputeDType), units.Things(q.Modules, "module"))
		list := strings.Join(q.SkipModules, ", ")
		if list == "" {
			list = "none"
		}
		line("skip list", "%s", list)
	}
	for _, l := range r.Loaders {
		if l.Agrees {
			line("loader", "%s: expects 4 bits exactly where they are", l.Name)
			continue
		}
		line("loader", "%s: disagrees about %s, first: %s", l.Name, units.Things(len(l.Problems), "module"), l.Problems[0])
	}
	for i, list := range [][]inspect.Count{r.Storages, r.Roles} {
		for _, s := range list {
			line([]string{"stored as", "role"}[i], "%-12s %5d %-7s  %10s parameters  %10s", s.Name, s.Tensors, units.Plural(s.Tensors, "tensor"), units.Count(s.Params), units.Bytes(s.Bytes))
		}
	}
	if len(r.Side) > 0 {
		line("carried", "%s", strings.Join(r.Side, ", "))
	}
	for _, n := range r.NotCarried {
		line("left", "%s: %s", n.Name, n.Why)
	}
	for _, w := range r.Warnings {
		line("warning", "%s", w)
	}
	if r.Refused != "" {
		line("refused", "%s", r.Refused)
	}
	for _, t := range r.Tensors {
		fmt.Fprintf(&b, "  %-60s %-9s %-18s %-10s %s\n", visible(t.Name), t.Storage, fmt.Sprint(t.Shape), t.Role, t.Would)
	}
	return b.String()
}
