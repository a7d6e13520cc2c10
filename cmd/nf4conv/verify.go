package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/verify"
	"github.com/nf4conv/nf4conv/verify/report"
)

func verifyVerb() verb {
	return verb{
		name: "verify", usage: "measure a converted model against its base, ending in pass, warn or fail", args: "BASE CANDIDATE", minArgs: 2, maxArgs: 2,
		example: "nf4conv verify path/to/model model-nf4 --report html=report.html",
		codes:   "0 pass (or warn, without --strict), 2 wrong usage, 3 a gate failed, 4 invalid input, 5 I/O error, 130 interrupted",
		flags: slices.Concat(textFlags(), []cli.Flag{attentionFlag(), adapterFlag()}, rederiveFlags(), []cli.Flag{
			stringFlag("ids", "", "safetensors `FILE` with input_ids [sequences, tokens] to run the models on"),
			&cli.IntFlag{Name: "sequences", Usage: "use the first `N` sequences of --ids (default: all)", EnvVars: env("sequences")},
			stringFlag("stage", "", "run only some `STAGES`: container,weights,layers,logits,rederive"),
			listFlag("max", "fail when a figure is more, as in `NAME=VALUE`; repeatable, replaces the default policy"),
			listFlag("min", "fail when a figure is less, as in `NAME=VALUE`; repeatable, replaces the default policy"),
			stringFlag("policy", "", "YAML `FILE` of gates, instead of the default policy"),
			boolFlag("strict", "let a warning fail"),
			listFlag("report", "write a report, `FORMAT=FILE`: json, junit, html, md or text; - is stdout; repeatable"),
		}),
		uses: []string{"threads", "memory", "progress"}, run: runVerify,
	}
}

// verifyFlags are the flags of verify, checked.
type verifyFlags struct {
	stages  []string
	policy  *verify.Policy // nil: the default one
	reports [][2]string    // format, path
	strict  bool
	ids     string
	limit   int
	text    string
	cut     verify.TextOptions
	sparse  *verify.Attention // nil: dense
	lora    [2][]string       // adapters of the base and the candidate

	rederive *rederiveChoice // nil: not asked for
}

func checkVerify(c *cli.Context, json bool) (*verifyFlags, error) {
	f := &verifyFlags{strict: c.Bool("strict"), ids: c.String("ids"), limit: c.Int("sequences")}
	var err error
	if f.stages, err = verify.ParseStages(c.String("stage")); err != nil {
		return nil, err
	}
	if f.rederive, err = checkRederive(c, f.stages); err != nil {
		return nil, err
	}
	if f.limit < 0 {
		return nil, fault.Usagef("--sequences %d: expected 1 or more", f.limit)
	}
	for _, read := range []func(*cli.Context) error{f.readText, f.readAttention, f.readAdapters, f.gates} {
		if err := read(c); err != nil {
			return nil, err
		}
	}
	stdout := json
	for _, s := range c.StringSlice("report") {
		format, path, ok := strings.Cut(s, "=")
		if !ok || path == "" || !slices.Contains(report.Formats, format) {
			return nil, fault.Usagef("--report %q: expected FORMAT=FILE with one of %s", s, strings.Join(report.Formats, ", "))
		}
		if path == "-" && stdout {
			return nil, fault.Usagef("--report %q: stdout has a document already", s)
		}
		stdout = stdout || path == "-"
		f.reports = append(f.reports, [2]string{format, path})
	}
	return f, nil
}

// gates reads --policy, --max and --min; the latter add to a policy file.
func (f *verifyFlags) gates(c *cli.Context) error {
	if path := c.String("policy"); path != "" {
		file, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return fault.Inputf("--policy: %w", err)
		}
		if err != nil {
			return fault.IOf("--policy: %w", err)
		}
		p, err := verify.ReadPolicy(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("--policy %q: %w", path, err)
		}
		if p.Name == "" {
			p.Name = path
		}
		f.policy = &p
	}
	for _, side := range []string{"max", "min"} {
		for _, s := range c.StringSlice(side) {
			g, err := verify.ParseGate(s, side == "max")
			if err != nil {
				return fmt.Errorf("--%s: %w", side, err)
			}
			if f.policy == nil {
				f.policy = &verify.Policy{Name: "command line"}
			}
			f.policy.Gates = append(f.policy.Gates, g)
		}
	}
	return nil
}

func runVerify(ctx context.Context, a *app, g *global, c *cli.Context) (err error) {
	f, err := checkVerify(c, g.json)
	if err != nil {
		return err
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
	o := verify.Options{Stages: f.stages, Threads: g.threads, Memory: g.memory, Begin: func(stage string) {
		if g.progress != "none" {
			a.say("verify: %s", stage)
		}
	}, Planned: func(memory int64) {
		if g.progress != "none" {
			a.say("verify: the forward passes take %s at most", units.IBytes(memory))
		}
	}}
	closeAdapters, err := f.openAdapters(&o)
	defer func() { err = errors.Join(err, closeAdapters()) }()
	if err != nil {
		return err
	}
	closeRederived, err := f.rederive.open(&o, sides[0], sides[1], g.threads)
	defer func() { err = errors.Join(err, closeRederived()) }()
	if err != nil {
		return err
	}
	if err := a.verifyText(f, sides[0], sides[1], &o); err != nil {
		return err
	}
	r, err := verify.Run(ctx, sides[0], sides[1], o)
	if err != nil {
		return err
	}
	p := f.policy
	if p == nil {
		d := verify.DefaultPolicy(r.Kind, r.Causal, f.stages)
		p = &d
	}
	f.rederive.addGates(p)
	p.Judge(r)
	return a.reportVerify(r, f, g.json)
}

// reportVerify writes every report before it says what the verdict means.
func (a *app) reportVerify(r *verify.Result, f *verifyFlags, json bool) error {
	if !a.quiet {
		fmt.Fprint(a.stderr, report.Text(r))
	}
	for _, to := range f.reports {
		var b bytes.Buffer
		if err := report.Write(&b, to[0], r); err != nil {
			return fmt.Errorf("writing the %s report: %w", to[0], err)
		}
		var err error
		if to[1] == "-" {
			_, err = a.stdout.Write(b.Bytes())
		} else {
			err = os.WriteFile(to[1], b.Bytes(), 0o644) //nolint:gosec // a report is for others to read
		}
		if err != nil {
			return fault.IOf("writing the %s report: %w", to[0], err)
		}
	}
	if json {
		if err := a.result(r); err != nil {
			return err
		}
	}
	if err := r.Err(f.strict); err != nil {
		return &gateError{err}
	}
	return nil
}
