package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
)

// User interface rules. stdout carries results and nothing else: with --json exactly
// one JSON document, also for an error. Everything meant for a person on the side goes
// to stderr with the prefix "nf4conv:". Messages are lower case, without a full stop.

// app is one run of the program.
type app struct {
	stdout, stderr *os.File
	json           bool // --json was given
	quiet          bool
	writes         bool            // the verb writes a checkpoint, in steps that are kept
	given          map[string]bool // flags on the command line
	autoBytes      int64           // weights from which --device auto looks for a GPU
}

// global are the flags of every verb.
type global struct {
	json, quiet, verbose bool
	logFormat            string
	progress             string
	device               deviceChoice
	threads              int
	memory               int64
}

// verb is a subcommand: its flags and what it does with its arguments.
type verb struct {
	name, usage, args, example string
	codes                      string // exit codes that mean something particular here
	minArgs, maxArgs           int
	flags                      []cli.Flag
	uses                       []string // global flags that do something here, besides --json and --quiet
	writes                     bool     // a checkpoint
	run                        func(ctx context.Context, a *app, g *global, c *cli.Context) error
}

func verbs() []verb {
	return append(verbsWithoutCompletion(), completionVerb(), helpVerb())
}

// main parses the command line and runs a verb.
func (a *app) main(ctx context.Context, args []string) error {
	vs := verbs()
	a.json = wantsJSON(args)
	p, err := parse(vs, args)
	if err != nil {
		return err
	}
	if p.help {
		return a.help(p.verb)
	}
	a.given = p.given
	return a.cli(ctx, vs).RunContext(ctx, append([]string{"nf4conv"}, p.args...))
}

func (a *app) cli(ctx context.Context, vs []verb) *cli.App {
	usageError := func(_ *cli.Context, err error, _ bool) error { return explainUsage(err) }
	app := &cli.App{
		Name: "nf4conv", HideVersion: true, HideHelp: true, Writer: a.stdout, ErrWriter: a.stderr,
		ExitErrHandler: func(*cli.Context, error) {}, OnUsageError: usageError,
	}
	for _, v := range vs {
		app.Commands = append(app.Commands, &cli.Command{
			Name: v.name, Flags: append(v.flags, globalFlags()...), OnUsageError: usageError, HideHelp: true,
			Action: func(c *cli.Context) error { return a.runVerb(ctx, &v, c) },
		})
	}
	return app
}

func (a *app) runVerb(ctx context.Context, v *verb, c *cli.Context) error {
	if n := c.NArg(); n < v.minArgs || n > v.maxArgs {
		want := v.args
		if want == "" {
			want = "no arguments"
		}
		found := "none"
		if n > 0 {
			found = fmt.Sprintf("%s %q", units.Things(n, "argument"), c.Args().Slice())
		}
		return fault.WithHint(fault.Usagef("%s: expected %s, found %s", v.name, want, found), "%s", v.example)
	}
	g, err := a.readGlobal(c)
	if err != nil {
		return err
	}
	a.json, a.quiet, a.writes = g.json, g.quiet, v.writes
	a.warnOfTiers()
	return v.run(ctx, a, g, c)
}

func env(flag string) []string {
	return []string{"NF4CONV_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

func boolFlag(name, usage string, aliases ...string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Aliases: aliases, Usage: usage, EnvVars: env(name)}
}

func stringFlag(name, value, usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

func listFlag(name, usage string) *cli.StringSliceFlag {
	return &cli.StringSliceFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		boolFlag("json", "print one JSON document on stdout (schemas: docs/schema)"),
		boolFlag("quiet", "print nothing but errors and results", "q"),
		boolFlag("verbose", "list every tensor in the plan and log every step", "v"),
		stringFlag("log-format", "text", "`FORMAT` of the log on stderr: text or json"),
		&cli.IntFlag{Name: "threads", Usage: "`N` workers (default: 0, which stands for one per CPU, and two per GPU)", EnvVars: env("threads")},
		stringFlag("memory", "", "cap on buffers: a `SIZE` such as 512MiB or 4GB (default: for conversions 128MiB, with a GPU 512MiB, or what the largest tensor needs; for verify what makes it fastest)"),
		stringFlag("device", "auto", "`WHERE` to compute: auto, cpu, cuda or cuda:0,1"),
		stringFlag("progress", "auto", "`HOW` to show progress: auto, plain or none"),
	}
}

func (a *app) readGlobal(c *cli.Context) (g *global, err error) {
	g = &global{json: c.Bool("json"), logFormat: c.String("log-format"), progress: c.String("progress"), threads: c.Int("threads")}
	if g.quiet, g.verbose, err = a.either(c, "quiet", "verbose", ""); err != nil {
		return nil, err
	}
	if err := oneOf("log-format", g.logFormat, "text", "json"); err != nil {
		return nil, err
	}
	if err := oneOf("progress", g.progress, "auto", "plain", "none"); err != nil {
		return nil, err
	}
	if g.threads < 0 || g.threads > 4096 {
		return nil, fault.Usagef("--threads %d: expected 0 (as many as there are CPUs) to 4096", g.threads)
	}
	if g.memory, err = sizeFlag(c, "memory"); err != nil {
		return nil, err
	}
	g.device, err = parseDevice(c.String("device"))
	return g, err
}

func oneOf(flag, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fault.Usagef("--%s %q: expected %s", flag, value, choices(allowed))
}

// sizeFlag reads a size; an empty one is 0.
func sizeFlag(c *cli.Context, name string) (int64, error) {
	s := c.String(name)
	if s == "" {
		return 0, nil
	}
	n, err := units.ParseBytes(s)
	if err != nil {
		return 0, fault.Usagef("--%s: %w", name, err)
	}
	if n <= 0 {
		return 0, fault.Usagef("--%s %q: expected more than nothing", name, s)
	}
	return n, nil
}

// warnOfTiers says that NF4CONV_DISABLE names something that cannot be disabled.
func (a *app) warnOfTiers() {
	var known []string
	for _, t := range tierStates() {
		if t.Name != "generic" {
			known = append(known, t.Name)
		}
	}
	for name := range strings.SplitSeq(os.Getenv("NF4CONV_DISABLE"), ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(known, name) {
			a.say("warning: NF4CONV_DISABLE names %q, which is no tier that can be switched off; those are %s", name, strings.Join(known, ", "))
		}
	}
}

// logger writes messages of the library to stderr.
func (a *app) logger(g *global) *slog.Logger {
	level := slog.LevelInfo
	switch {
	case g.quiet:
		level = slog.LevelError
	case g.verbose:
		level = slog.LevelDebug
	}
	if g.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(&lineHandler{w: a.stderr, level: level})
}

// result prints the one JSON document.
func (a *app) result(doc any) error { return printJSON(a.stdout, doc) }

func printJSON(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fault.IOf("writing the result: %w", err)
	}
	return nil
}
