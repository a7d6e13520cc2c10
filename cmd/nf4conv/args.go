package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// permute moves the verb to the front and flags before the other arguments, because
// urfave/cli stops looking for flags at the first argument. "--" ends the flags.
func permute(vs []verb, args []string) ([]string, error) {
	name, at := findVerb(args)
	if at < 0 {
		return args, nil
	}
	i := slices.IndexFunc(vs, func(v verb) bool { return v.name == name })
	if i < 0 {
		return args, unknownVerb(vs, name)
	}
	flags := flagKinds(append(vs[i].flags, globalFlags()...))
	out := []string{name}
	var rest []string
	args = slices.Concat(args[:at], args[at+1:])
	for k := 0; k < len(args); k++ {
		s := args[k]
		if s == "--" {
			rest = append(rest, args[k+1:]...)
			break
		}
		if len(s) < 2 || s[0] != '-' {
			rest = append(rest, s)
			continue
		}
		flag, _, inline := strings.Cut(strings.TrimLeft(s, "-"), "=")
		isBool, known := flags[flag]
		if !known {
			return append([]string{name}, args...), unknownFlag(name, flag, flags)
		}
		out = append(out, s)
		if !isBool && !inline {
			if k++; k == len(args) {
				return append([]string{name}, args...), fault.Usagef("%s: --%s needs a value", name, flag)
			}
			out = append(out, args[k])
		}
	}
	return append(append(out, "--"), rest...), nil
}

// findVerb is the first argument that is neither a flag nor the value of a global one.
func findVerb(args []string) (string, int) {
	flags := flagKinds(globalFlags())
	for i := 0; i < len(args); i++ {
		s := args[i]
		switch {
		case s == "--":
			return "", -1
		case len(s) < 2 || s[0] != '-':
			return s, i
		}
		flag, _, inline := strings.Cut(strings.TrimLeft(s, "-"), "=")
		if isBool, known := flags[flag]; known && !isBool && !inline {
			i++
		}
	}
	return "", -1
}

// flagKinds maps every name of every flag to whether it takes no value.
func flagKinds(flags []cli.Flag) map[string]bool {
	out := map[string]bool{"help": true, "h": true}
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, n := range f.Names() {
			out[n] = isBool
		}
	}
	return out
}

func unknownVerb(vs []verb, name string) error {
	var names []string
	for _, v := range vs {
		names = append(names, v.name)
	}
	err := fault.Usagef("there is no verb %q; expected %s", name, strings.Join(names, ", "))
	if near := nearest(name, names); near != "" {
		return fault.WithHint(err, "did you mean %q?", near)
	}
	return fault.WithHint(err, "nf4conv --help lists them")
}

func unknownFlag(verb, flag string, flags map[string]bool) error {
	var names []string
	for n := range flags {
		names = append(names, n)
	}
	slices.Sort(names)
	err := fault.Usagef("%s: there is no flag --%s", verb, flag)
	if near := nearest(flag, names); near != "" {
		return fault.WithHint(err, "did you mean --%s?", near)
	}
	return fault.WithHint(err, "nf4conv %s --help lists them", verb)
}

// explainUsage classifies what urfave/cli says of flags.
func explainUsage(_ []verb, err error) error {
	msg := strings.TrimPrefix(err.Error(), "flag: ")
	return fault.Usagef("%s", strings.TrimSuffix(msg, "."))
}

// nearest is the name at the least edit distance, if that is small.
func nearest(s string, names []string) string {
	best, bestAt := "", max(2, len(s)/3)+1
	for _, n := range names {
		if d := distance(s, n); d < bestAt && len(n) > 1 {
			best, bestAt = n, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(prev+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

const appHelp = `nf4conv turns safetensors checkpoints into bitsandbytes 4-bit checkpoints (NF4, FP4)
that load in transformers, PEFT, vLLM and Unsloth. No GPU, torch or Python needed.

usage: nf4conv VERB [FLAGS] ARGUMENTS

verbs:
{{range .VisibleCommands}}  {{printf "%-12s" .Name}} {{.Usage}}
{{end}}
"nf4conv VERB --help" shows flags, an example and exit codes. Flags may stand anywhere;
every flag --some-flag can be set by the environment variable NF4CONV_SOME_FLAG.

example: nf4conv quantize path/to/model model-nf4

exit codes: 0 success, 1 internal error, 2 wrong usage, 3 a gate failed, 4 invalid input,
5 I/O or device error, 130 interrupted
`

// verbHelp is the help of a verb: usage, flags, example, exit codes.
func verbHelp(v *verb) string {
	codes := "0 success, 2 wrong usage, 4 invalid input, 5 I/O error, 130 interrupted"
	if v.codes != "" {
		codes = v.codes
	}
	return fmt.Sprintf(`usage: nf4conv %s [FLAGS] %s

%s

flags:
{{range .VisibleFlags}}  {{.}}
{{end}}
example: %s

exit codes: %s
`, v.name, v.args, v.usage, v.example, codes)
}
