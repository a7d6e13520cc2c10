package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/term"
)

func helpVerb() verb {
	return verb{
		name: "help", usage: "show how to use the program or a verb", args: "[VERB]", maxArgs: 1,
		example: "nf4conv help quantize", codes: "0 success, 2 wrong usage, 5 I/O error",
		run: func(_ context.Context, a *app, _ *global, c *cli.Context) error { return a.help(c.Args().First()) },
	}
}

// help prints the help of a verb, or of the program for an empty name.
func (a *app) help(name string) error {
	width := term.Width(a.stdout)
	if width == 0 {
		width = helpWidth
	}
	vs := verbs()
	if name == "" {
		return a.text(appHelp(vs, width))
	}
	i := slices.IndexFunc(vs, func(v verb) bool { return v.name == name })
	if i < 0 {
		return unknownVerb(vs, name)
	}
	return a.text(verbHelp(&vs[i], width))
}

func appHelp(vs []verb, width int) string {
	var b strings.Builder
	b.WriteString(wrap("", "nf4conv turns safetensors checkpoints into bitsandbytes 4-bit checkpoints (NF4, FP4) "+
		"that load in transformers, PEFT, vLLM and Unsloth. No GPU, torch or Python needed.", 0, width))
	b.WriteString("\nusage: nf4conv VERB [FLAGS] ARGUMENTS\n\nverbs:\n")
	for _, v := range vs {
		b.WriteString(wrap(fmt.Sprintf("  %-12s ", v.name), v.usage, 15, width))
	}
	b.WriteString("\n" + wrap("", `"nf4conv VERB --help" shows flags, an example and exit codes. Flags may stand anywhere; every flag --some-flag `+
		"can be set by the environment variable NF4CONV_SOME_FLAG, and the command line wins.", 0, width))
	b.WriteString("\n" + wrap("example: ", "nf4conv quantize path/to/model model-nf4", 2, width))
	b.WriteString("\n" + wrap("exit codes: ", "0 success, 1 internal error, 2 wrong usage, 3 a gate failed, 4 invalid input, 5 I/O or device error, 130 interrupted", 2, width))
	return b.String()
}

// verbHelp is the help of a verb: usage, flags, example, exit codes.
func verbHelp(v *verb, width int) string {
	codes := "0 success, 2 wrong usage, 4 invalid input, 5 I/O error, 130 interrupted"
	if v.codes != "" {
		codes = v.codes
	}
	var b strings.Builder
	b.WriteString(strings.TrimRight(fmt.Sprintf("usage: nf4conv %s [FLAGS] %s", v.name, v.args), " ") + "\n\n")
	b.WriteString(wrap("", v.usage, 0, width) + "\nflags:\n")
	rows := [][2]string{}
	column := 0
	for _, f := range v.shown() {
		name, usage := describeFlag(f)
		rows = append(rows, [2]string{name, usage})
		column = max(column, len(name))
	}
	rows = append(rows, [2]string{"--help, -h", "show this"})
	for _, r := range rows {
		if width < 2*column+10 { // too narrow for two columns
			b.WriteString("  " + r[0] + "\n" + wrap("      ", r[1], 6, width))
			continue
		}
		b.WriteString(wrap(fmt.Sprintf("  %-*s  ", column, r[0]), r[1], column+4, width))
	}
	b.WriteString("\n" + wrap("example: ", v.example, 2, width))
	b.WriteString("\n" + wrap("exit codes: ", codes, 2, width))
	return b.String()
}

// shown are the flags that do something in this verb. The other global ones are
// accepted by every verb, so that scripts and the environment may always give them.
func (v *verb) shown() []cli.Flag {
	out := slices.Clone(v.flags)
	for _, f := range globalFlags() {
		if name := f.Names()[0]; name == "json" || name == "quiet" || slices.Contains(v.uses, name) {
			out = append(out, f)
		}
	}
	return out
}

// describeFlag is "--block-size N" and what it does, with the default where there is one.
// The word in backquotes of the usage stands for the value.
func describeFlag(f cli.Flag) (name, usage string) {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		panic("nf4conv: internal error: a flag without documentation: " + f.Names()[0])
	}
	usage = strings.ReplaceAll(d.GetUsage(), "`", "")
	var names []string
	for _, n := range f.Names() {
		if len(n) == 1 {
			names = append(names, "-"+n)
			continue
		}
		names = append(names, "--"+n)
	}
	name = strings.Join(names, ", ")
	if !d.TakesValue() {
		return name, usage
	}
	value := "VALUE"
	if parts := strings.Split(d.GetUsage(), "`"); len(parts) == 3 {
		value = parts[1]
	}
	var preset string
	switch f := f.(type) {
	case *cli.StringFlag:
		preset = f.Value
	case *cli.IntFlag:
		if f.Value != 0 {
			preset = fmt.Sprint(f.Value)
		}
	}
	if preset != "" {
		usage += " (default: " + preset + ")"
	}
	return name + " " + value, usage
}
