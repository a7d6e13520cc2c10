package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/term"
)

// runDoc is what --json prints after a conversion.
type runDoc struct {
	Schema   string           `json:"schema"`
	Verb     string           `json:"verb"`
	Model    convert.Model    `json:"model"`
	Totals   convert.Totals   `json:"totals"`
	Schedule convert.Schedule `json:"schedule"`
	Loaders  []convert.Loader `json:"loaders,omitempty"`
	Merge    *convert.Merging `json:"merge,omitempty"` // of adapters
	Warnings []string         `json:"warnings"`
	Result   *convert.Result  `json:"result"`
	PeakRSS  int64            `json:"peak_rss_bytes"`
}

// runPlan is the common part of the verbs that write a checkpoint: open, plan, show,
// run, sum up.
func (a *app) runPlan(ctx context.Context, g *global, c *cli.Context, build builder) (err error) {
	restart, dryRun, err := a.either(c, "restart", "dry-run", ": a dry run removes nothing")
	if err != nil {
		return err
	}
	out := c.Args().Get(1)
	if err := convert.CheckName(out); err != nil {
		return err
	}
	// What lives is the plan and the buffers, and little is made anew: the collector may work
	// harder for a small process.
	debug.SetGCPercent(collectorPercent)
	src, err := hf.Open(c.Args().Get(0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	fileName, err := outFileName(src, out)
	if err != nil {
		return err
	}
	at, err := a.planOn(g, src, fileName, c.String("gpu-memory"), build)
	if err != nil {
		return err
	}
	if at.engine != nil {
		defer func() { err = errors.Join(err, at.engine.Close()) }()
	}
	plan := at.plan
	var progress convert.Progress
	o := convert.RunOptions{
		Out: out, Overwrite: c.Bool("overwrite"), Restart: restart, SHA256: c.Bool("sha256"), Card: c.Bool("card"),
		NoSync: c.Bool("no-sync"), Tool: thisTool(), Progress: &progress, Log: a.logger(g),
	}
	if !dryRun {
		if err := convert.Check(plan, o); err != nil {
			return err
		}
	}
	for _, w := range plan.Warnings {
		a.say("warning: %s", w)
	}
	if dryRun {
		if g.json {
			return a.result(plan)
		}
		return a.print(planText(plan, out, g.verbose, term.Width(a.stdout)))
	}
	if !a.quiet {
		fmt.Fprint(a.stderr, planText(plan, out, g.verbose, term.Width(a.stderr)))
	}
	debug.SetMemoryLimit(plan.Schedule.Memory + 32<<20)
	stop := a.showProgress(&progress, plan, g)
	res, err := a.runOn(ctx, g, &at, o, func() (*convert.Plan, error) { return build(src, fileName, nil) })
	stop()
	plan = at.plan
	if err != nil {
		return err
	}
	peak := peakRSS()
	if g.json {
		return a.result(&runDoc{
			Schema: "nf4conv.run/1", Verb: plan.Verb, Model: plan.Model, Totals: plan.Totals, Schedule: plan.Schedule, Loaders: plan.Loaders, Merge: plan.Merge,
			Warnings: append([]string{}, plan.Warnings...), Result: res, PeakRSS: peak,
		})
	}
	if !a.quiet {
		a.showSummary(plan, res, peak, c.Args().Get(0))
	}
	return nil
}

// collectorPercent is how much garbage may stand beside what lives before it is collected.
const collectorPercent = 20

// plainInterval is the time between lines of plain progress.
const plainInterval = 5 * time.Second
