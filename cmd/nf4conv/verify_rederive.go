package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

// rederiveFlags are the flags of verify that repeat the conversion.
func rederiveFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("rederive", "", "repeat the conversion from BASE as the manifest says and compare bytes, of a `SAMPLE` of tensors: all, a number such as 20, or a share such as 10% or 0.1"),
		&cli.Int64Flag{Name: "rederive-seed", Usage: "`N` chooses among the samples of --rederive (default: 0)", EnvVars: env("rederive-seed")},
		listFlag("rederive-adapter", "`DIR` of an adapter that the candidate was merged with, for --rederive (repeatable)"),
	}
}

// rederiveChoice is what the flags ask for.
type rederiveChoice struct {
	sample   verify.Sample
	adapters []string
}

// checkRederive reads the flags; nil: the conversion is not repeated.
func checkRederive(c *cli.Context, stages []string) (*rederiveChoice, error) {
	text := c.String("rederive")
	if text == "" {
		if len(c.StringSlice("rederive-adapter")) > 0 || c.IsSet("rederive-seed") {
			return nil, fault.Usagef("--rederive-adapter and --rederive-seed have an effect only with --rederive")
		}
		if slices.Contains(stages, verify.StageRederive) {
			return nil, fault.WithHint(fault.Usagef("verify: the stage rederive needs a sample, and --rederive is not given"), "--rederive all repeats the conversion of every tensor")
		}
		return nil, nil
	}
	s, err := verify.ParseSample(text, c.Int64("rederive-seed"))
	if err != nil {
		return nil, fmt.Errorf("--rederive: %w", err)
	}
	return &rederiveChoice{s, c.StringSlice("rederive-adapter")}, nil
}

// addGates lets a difference fail under any policy that has no limit of its own for it.
func (r *rederiveChoice) addGates(p *verify.Policy) {
	if r == nil {
		return
	}
	for _, g := range verify.RederiveGates() {
		if !slices.ContainsFunc(p.Gates, func(h verify.Gate) bool { return h.Metric == g.Metric }) {
			p.Gates = append(p.Gates, g)
		}
	}
}

// open plans what the candidate's manifest says, so that what cannot be repeated is refused
// before anything is computed; the stage carries it out against the candidate. What open
// returns closes the adapters.
func (r *rederiveChoice) open(o *verify.Options, base, candidate *hf.Checkpoint, threads int) (closeAll func() error, err error) {
	var adapters []*peft.Adapter
	closeAll = func() (err error) {
		for _, a := range adapters {
			err = errors.Join(err, a.Close())
		}
		return err
	}
	if r == nil {
		return closeAll, nil
	}
	m, err := convert.ReadManifest(candidate)
	if err != nil {
		return closeAll, err
	}
	for _, dir := range r.adapters {
		a, err := peft.Open(dir)
		if err != nil {
			return closeAll, err
		}
		adapters = append(adapters, a)
	}
	p, err := convert.PlanFromManifest(m, base, adapters, convert.Resources{Threads: threads})
	if err != nil {
		return closeAll, fmt.Errorf("repeating the conversion: %w", err)
	}
	o.Rederive = func(ctx context.Context) (*verify.Rederived, error) { return r.run(ctx, p, m, candidate) }
	return closeAll, nil
}

func (r *rederiveChoice) run(ctx context.Context, p *convert.Plan, m *convert.Manifest, candidate *hf.Checkpoint) (*verify.Rederived, error) {
	var names []string
	for i := range p.Jobs {
		names = append(names, p.Jobs[i].Name)
	}
	chosen := r.sample.Choose(names)
	d, err := convert.Rederive(ctx, p, m, candidate, func(name string) bool { return chosen[name] })
	if err != nil {
		return nil, err
	}
	out := &verify.Rederived{
		Verb: m.Verb, Tool: strings.TrimSpace(m.Tool.Name + " " + m.Tool.Version), Sample: r.sample.String(), Seed: r.sample.Seed(),
		Tensors: d.Tensors, Of: d.Of, Bytes: d.Bytes, Differences: []verify.Difference{},
	}
	for _, x := range d.Differences {
		out.Differences = append(out.Differences, verify.Difference(x))
	}
	return out, nil
}
