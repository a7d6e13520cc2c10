package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// commandLine is what the arguments say before flags are parsed.
type commandLine struct {
	args  []string        // the verb, its flags, "--", the other arguments
	verb  string          // empty: none
	help  bool            // --help stands among the flags
	given map[string]bool // flags on the command line, by their first names
}

// parse moves the verb to the front and flags before the other arguments, because
// urfave/cli stops looking for flags at the first argument. "--" ends the flags.
func parse(vs []verb, args []string) (*commandLine, error) {
	name, at := findVerb(args)
	if at < 0 {
		return withoutVerb(args)
	}
	i := slices.IndexFunc(vs, func(v verb) bool { return v.name == name })
	if i < 0 {
		return nil, unknownVerb(vs, name)
	}
	flags := flagKinds(append(vs[i].flags, globalFlags()...))
	p := &commandLine{args: []string{name}, verb: name, given: map[string]bool{}}
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
		kind, known := flags[flag]
		switch {
		case !known:
			return nil, unknownFlag(name, flag, flags)
		case kind.name == "help":
			p.help = true
			continue
		}
		p.given[kind.name] = true
		p.args = append(p.args, s)
		if !kind.isBool && !inline {
			if k++; k == len(args) {
				return nil, fault.Usagef("%s: --%s needs a value", name, flag)
			}
			p.args = append(p.args, args[k])
		}
	}
	p.args = append(append(p.args, "--"), rest...)
	return p, nil
}

// withoutVerb is for flags alone: --help and --version mean the verbs of those names.
func withoutVerb(args []string) (*commandLine, error) {
	p := &commandLine{help: true, given: map[string]bool{}}
	flags := flagKinds(globalFlags())
	flags["version"] = flagKind{"version", true}
	for k := 0; k < len(args) && args[k] != "--"; k++ {
		flag, _, inline := strings.Cut(strings.TrimLeft(args[k], "-"), "=")
		kind, known := flags[flag]
		switch {
		case !known:
			return nil, unknownFlag("", flag, flags)
		case kind.name == "version":
			p.verb, p.help = "version", false
			continue
		case kind.name != "help":
			p.args = append(p.args, args[k])
		}
		if !kind.isBool && !inline {
			if k++; k == len(args) {
				return nil, fault.Usagef("--%s needs a value", flag)
			}
			p.args = append(p.args, args[k])
		}
	}
	p.args = append([]string{p.verb}, p.args...)
	return p, nil
}

// findVerb is the first argument that is neither a flag nor the value of a global one.
func findVerb(args []string) (string, int) {
	flags := flagKinds(globalFlags())
	for i := 0; i < len(args); i++ {
		s := args[i]
		if s == "--" {
			if i++; i == len(args) {
				break
			}
			return args[i], i
		}
		if len(s) < 2 || s[0] != '-' {
			return s, i
		}
		flag, _, inline := strings.Cut(strings.TrimLeft(s, "-"), "=")
		if kind, known := flags[flag]; known && !kind.isBool && !inline {
			i++
		}
	}
	return "", -1
}

// flagKind is the first name of a flag and whether it takes no value.
type flagKind struct {
	name   string
	isBool bool
}

// flagKinds maps every name of every flag to its kind.
func flagKinds(flags []cli.Flag) map[string]flagKind {
	help := flagKind{"help", true}
	out := map[string]flagKind{"help": help, "h": help}
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, n := range f.Names() {
			out[n] = flagKind{f.Names()[0], isBool}
		}
	}
	return out
}

// wantsJSON looks for --json itself, so that errors of parsing are JSON too.
func wantsJSON(args []string) bool {
	want, _ := strconv.ParseBool(os.Getenv("NF4CONV_JSON"))
	for _, s := range args {
		if s == "--" {
			break
		}
		flag, value, inline := strings.Cut(strings.TrimLeft(s, "-"), "=")
		if !strings.HasPrefix(s, "-") || flag != "json" {
			continue
		}
		if v, err := strconv.ParseBool(value); err == nil || !inline {
			want = v || !inline
		}
	}
	return want
}

// either reads two switches that contradict each other. One on the command line wins
// over one in the environment.
func (a *app) either(c *cli.Context, x, y, why string) (isX, isY bool, err error) {
	isX, isY = c.Bool(x), c.Bool(y)
	if isX && isY {
		if a.given[x] == a.given[y] {
			return false, false, fault.Usagef("--%s and --%s contradict each other%s", x, y, why)
		}
		isX, isY = a.given[x], a.given[y]
	}
	return isX, isY, nil
}

func unknownVerb(vs []verb, name string) error {
	var names []string
	for _, v := range vs {
		names = append(names, v.name)
	}
	err := fault.Usagef("there is no verb %q; expected %s", name, choices(names))
	if near := nearest(name, names); near != "" {
		return fault.WithHint(err, "did you mean %q?", near)
	}
	return fault.WithHint(err, "nf4conv --help lists them")
}

func unknownFlag(verb, flag string, flags map[string]flagKind) error {
	var names []string
	for n := range flags {
		names = append(names, n)
	}
	slices.Sort(names)
	where, help := verb+": ", "nf4conv "+verb+" --help lists them"
	if verb == "" {
		where, help = "", "a verb comes first: nf4conv --help lists them"
	}
	err := fault.Usagef("%sthere is no flag --%s", where, visible(flag))
	if near := nearest(flag, names); near != "" {
		return fault.WithHint(err, "did you mean --%s?", near)
	}
	return fault.WithHint(err, "%s", help)
}

// What urfave/cli and the package flag say of a value that a flag does not take: in the
// environment, and on the command line.
var (
	badVariable = regexp.MustCompile(`^could not parse (".*") as (\w+) value from environment variable "(\w+)" for flag [\w-]+: (.*)$`)
	badFlag     = regexp.MustCompile(`^invalid (boolean )?value (".*") for (?:flag )?-([\w-]+): (.*)$`)
)

// explainUsage says in our words what urfave/cli says of flags.
func explainUsage(err error) error {
	expected := func(isBool bool, cause string) string {
		switch {
		case isBool:
			return "true or false"
		case strings.Contains(cause, "out of range"):
			return "a smaller number"
		}
		return "a whole number"
	}
	msg := err.Error()
	if m := badVariable.FindStringSubmatch(msg); m != nil {
		return fault.Usagef("the environment variable %s is %s: expected %s", m[3], m[1], expected(m[2] == "bool", m[4]))
	}
	if m := badFlag.FindStringSubmatch(msg); m != nil {
		return fault.Usagef("--%s %s: expected %s", m[3], m[2], expected(m[1] != "", m[4]))
	}
	return fault.Usagef("%s", strings.TrimSuffix(strings.TrimPrefix(msg, "flag: "), "."))
}

// choices lists names as in "a, b or c".
func choices(names []string) string {
	if n := len(names); n > 1 {
		return fmt.Sprintf("%s or %s", strings.Join(names[:n-1], ", "), names[n-1])
	}
	return strings.Join(names, "")
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
