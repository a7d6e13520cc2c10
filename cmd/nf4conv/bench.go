package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/bench"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// benchDoc is what `bench --json` prints.
type benchDoc struct {
	Schema  string          `json:"schema"`
	Reports []*bench.Report `json:"reports"`
}

func benchVerb() verb {
	return verb{
		name: "bench", usage: "measure this machine's limits and what the kernels make of them", args: "", maxArgs: 0,
		example: "nf4conv bench --device cuda --dir .", codes: "0 success, 2 wrong usage, 5 I/O or device error, 130 interrupted",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "measure a file of 1 GiB in `DIR` too", EnvVars: env("dir")},
		},
		uses: []string{"threads", "device"},
		run:  runBench,
	}
}

func runBench(ctx context.Context, a *app, g *global, c *cli.Context) error {
	doc := &benchDoc{Schema: bench.Schema}
	show := func(r *bench.Report, err error) error {
		if err != nil {
			return err
		}
		doc.Reports = append(doc.Reports, r)
		if g.json {
			return nil
		}
		return a.print(benchText(r))
	}
	threads := g.threads
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	if !g.device.cuda {
		if err := show(bench.CPU(ctx, threads)); err != nil {
			return err
		}
	}
	if err := a.benchGPUs(ctx, g, show); err != nil {
		return err
	}
	if dir := c.String("dir"); dir != "" {
		if err := show(bench.Disk(ctx, dir, threads)); err != nil {
			return err
		}
	}
	if g.json {
		return a.result(doc)
	}
	return nil
}

// benchGPUs measures the GPUs that --device names: with auto all, if there are some.
func (a *app) benchGPUs(ctx context.Context, g *global, show func(*bench.Report, error) error) error {
	if !g.device.cuda && !g.device.auto {
		return nil
	}
	lib, err := driver.Open()
	if err != nil {
		if g.device.cuda {
			return fault.IOf("--device cuda: no usable GPU: %w", err)
		}
		a.say("no GPU is measured: %s", oneLine(err))
		return nil
	}
	indices := g.device.indices
	if len(indices) == 0 {
		for i := range lib.Devices() {
			indices = append(indices, i)
		}
	}
	for _, i := range indices {
		if i >= len(lib.Devices()) {
			return fault.IOf("cuda:%d: there is no such device; the driver shows %d", i, len(lib.Devices()))
		}
		if err := show(bench.GPU(ctx, lib, i)); err != nil {
			return err
		}
	}
	return nil
}

func benchText(r *bench.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", strings.TrimSpace(r.Device))
	for _, rate := range r.Rates {
		share := ""
		if rate.Of != "" {
			share = fmt.Sprintf("%5.1f %% of %s", 100*rate.Share, rate.Of)
		}
		line := fmt.Sprintf("  %12s/s  %-64s %s", units.Bytes(int64(rate.PerSec)), rate.Name, share)
		fmt.Fprintln(&b, strings.TrimRight(line, " "))
	}
	return b.String()
}
