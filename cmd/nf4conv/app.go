package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
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
	autoBytes      int64 // weights from which --device auto looks for a GPU
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
	run                        func(ctx context.Context, a *app, g *global, c *cli.Context) error
}

func verbs() []verb {
	return append(verbsWithoutCompletion(), completionVerb())
}

// main parses the command line and runs a verb.
func (a *app) main(ctx context.Context, args []string) error {
	vs := verbs()
	args, err := permute(vs, args)
	a.json = wantsJSON(args)
	if err != nil {
		return err
	}
	return a.cli(ctx, vs).RunContext(ctx, append([]string{"nf4conv"}, args...))
}

// wantsJSON looks for --json itself, so that errors of parsing are JSON too.
func wantsJSON(args []string) bool {
	for _, s := range args {
		if s == "--" {
			break
		}
		if s == "--json" || s == "-json" || s == "--json=true" {
			return true
		}
	}
	return os.Getenv("NF4CONV_JSON") == "true" || os.Getenv("NF4CONV_JSON") == "1"
}

func (a *app) cli(ctx context.Context, vs []verb) *cli.App {
	usageError := func(_ *cli.Context, err error, _ bool) error { return explainUsage(vs, err) }
	app := &cli.App{
		Name: "nf4conv", Usage: "turns safetensors checkpoints into bitsandbytes 4-bit checkpoints",
		HideVersion: true, HideHelpCommand: true, Writer: a.stdout, ErrWriter: a.stderr,
		ExitErrHandler: func(*cli.Context, error) {}, OnUsageError: usageError,
		CustomAppHelpTemplate: appHelp,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownVerb(vs, c.Args().First())
			}
			return errors.Join(cli.ShowAppHelp(c))
		},
	}
	for _, v := range vs {
		app.Commands = append(app.Commands, &cli.Command{
			Name: v.name, Usage: v.usage, ArgsUsage: v.args, Flags: append(v.flags, globalFlags()...), OnUsageError: usageError,
			CustomHelpTemplate: verbHelp(&v), HideHelpCommand: true,
			Action: func(c *cli.Context) error { return a.runVerb(ctx, &v, c) },
		})
	}
	return app
}

func (a *app) runVerb(ctx context.Context, v *verb, c *cli.Context) error {
	if n := c.NArg(); n < v.minArgs || n > v.maxArgs {
		return fault.WithHint(fault.Usagef("%s: expected %s, found %d arguments %q", v.name, v.args, n, c.Args().Slice()), "%s", v.example)
	}
	g, err := readGlobal(c)
	if err != nil {
		return err
	}
	a.json, a.quiet = g.json, g.quiet
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
		boolFlag("verbose", "say more", "v"),
		stringFlag("log-format", "text", "`FORMAT` of messages on stderr: text or json"),
		&cli.IntFlag{Name: "threads", Usage: "`N` workers (default: one per CPU, and two per GPU)", EnvVars: env("threads")},
		stringFlag("memory", "", "cap on buffers, as in 512MiB or 4GB (default: 128MiB, with a GPU 512MiB, or what the largest tensor needs)"),
		stringFlag("device", "auto", "`WHERE` to compute: auto, cpu, cuda or cuda:0,1"),
		stringFlag("progress", "auto", "`HOW` to show progress: auto, plain or none"),
	}
}

func readGlobal(c *cli.Context) (*global, error) {
	g := &global{
		json: c.Bool("json"), quiet: c.Bool("quiet"), verbose: c.Bool("verbose"), logFormat: c.String("log-format"),
		progress: c.String("progress"), threads: c.Int("threads"),
	}
	if g.quiet && g.verbose {
		return nil, fault.Usagef("--quiet and --verbose contradict each other")
	}
	if err := oneOf("log-format", g.logFormat, "text", "json"); err != nil {
		return nil, err
	}
	if err := oneOf("progress", g.progress, "auto", "plain", "none"); err != nil {
		return nil, err
	}
	if g.threads < 0 || g.threads > 4096 {
		return nil, fault.Usagef("--threads %d: expected 1 to 4096", g.threads)
	}
	var err error
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
	return fault.Usagef("--%s %q: expected %s", flag, value, strings.Join(allowed, " or "))
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

// say prints a line for people.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, "nf4conv: "+format+"\n", args...)
	}
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
