package verify

import (
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/nf4conv/nf4conv/internal/fault"
)

func none() Number { return Number(math.NaN()) }

func atMost(name string, warn, fail Number) Gate {
	return Gate{Metric: name, Max: Limits{warn, fail}, Min: noLimits}
}

func atLeast(name string, warn, fail Number) Gate {
	return Gate{Metric: name, Min: Limits{warn, fail}, Max: noLimits}
}

// DefaultPolicy is what a candidate of a kind is held to where nothing else is asked for;
// gates of stages that are not among those given (none: all) are left out. Limits of
// divergence, likeliest tokens and perplexity follow what is published of 4- and 8-bit
// models; those of tensors tell damage from quantization, which the figures of the whole
// model do not where one layer is damaged a little (docs/verify.md).
func DefaultPolicy(kind string, causal bool, stages []string) Policy {
	perplexity := func(warn, fail Number) Gate {
		g := atMost("ppl.ratio", warn, fail)
		g.Sigmas = 1.96
		return g
	}
	gain := Gate{Metric: "fourbit.gain", Min: Limits{none(), 0.97}, Max: Limits{none(), 1.03}, IfAny: true}
	ifAny := func(g Gate) Gate { g.IfAny = true; return g }
	p := Policy{Name: "default " + kind}
	p.Gates = append(p.Gates, atMost("container.findings", none(), 0), ifAny(atMost("loaders.disagree", 0, none())), atLeast("tokens", 10000, 1))
	switch kind {
	case "4-bit":
		p.Gates = append(p.Gates,
			gain, ifAny(atMost("fourbit.error_ratio", 1.05, 1.1)), ifAny(atMost("fourbit.requantize_changed", 0, 0.001)),
			ifAny(atMost("kept.rel_error", 0.004, 0.01)),
			atMost("layer.rel_error", none(), diverged),
			atMost("kld.mean", 0.05, 0.1), atLeast("top1", 0.90, 0.86), perplexity(1.03, 1.08))
	case "8-bit":
		p.Gates = append(p.Gates, ifAny(atMost("kept.rel_error", 0.04, 0.06)), atMost("layer.rel_error", none(), diverged),
			atMost("kld.mean", 0.005, 0.01), atLeast("top1", 0.965, 0.95), perplexity(1.005, 1.01))
	default:
		p.Gates = append(p.Gates, ifAny(atMost("kept.rel_error", 0.004, 0.01)), atMost("layer.rel_error", none(), 0.1),
			atMost("kld.mean", 0.001, 0.005), atLeast("top1", 0.98, 0.965), perplexity(1.002, 1.005))
	}
	p.Gates = slices.DeleteFunc(p.Gates, func(g Gate) bool {
		return len(stages) > 0 && !slices.Contains(stages, g.Stage()) || !causal && g.Metric == "ppl.ratio"
	})
	return p
}

// ParseGate reads NAME=VALUE: a limit whose other side is a failure. Errors are of class
// fault.Usage, for names that do not exist, too.
func ParseGate(s string, upper bool) (Gate, error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return Gate{}, fault.Usagef("gate %q: expected NAME=VALUE", s)
	}
	if err := checkName(name); err != nil {
		return Gate{}, fault.Usagef("gate %q: %w", s, err)
	}
	v, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return Gate{}, fault.Usagef("gate %q: value %q; expected a number", s, value)
	}
	if upper {
		return atMost(name, none(), Number(v)), nil
	}
	return atLeast(name, none(), Number(v)), nil
}

func checkName(name string) error {
	if known(name) {
		return nil
	}
	return fault.Usagef("there is no figure %q; expected one of %s, or fourbit., kept. or layer. and a figure of a tensor or layer", name, strings.Join(Figures(), ", "))
}

// Figures are the names of the figures of a run, sorted.
func Figures() []string {
	var out []string
	for n := range scalars {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// file is a policy on disk.
type file struct {
	Name  string              `yaml:"name"`
	Gates map[string]fileGate `yaml:"gates"`
}

type fileGate struct {
	Max    *limit  `yaml:"max"`
	Min    *limit  `yaml:"min"`
	Sigmas float64 `yaml:"sigmas"`
	IfAny  bool    `yaml:"if_any"`
}

// limit is a number, which fails, or a mapping.
type limit struct{ warn, fail Number }

type pair struct {
	Warn *float64 `yaml:"warn"`
	Fail *float64 `yaml:"fail"`
}

func (l *limit) UnmarshalYAML(b []byte) error {
	l.warn, l.fail = none(), none()
	var v float64
	if yaml.Unmarshal(b, &v) == nil {
		l.fail = Number(v)
		return nil
	}
	var p pair
	if err := yaml.UnmarshalWithOptions(b, &p, yaml.Strict()); err != nil {
		return err
	}
	if p.Warn != nil {
		l.warn = Number(*p.Warn)
	}
	if p.Fail != nil {
		l.fail = Number(*p.Fail)
	}
	return nil
}

// maxPolicy bounds the size of a policy file.
const maxPolicy = 1 << 20

// ReadPolicy reads a policy in YAML (docs/verify.md). Errors are of class fault.Input:
// what it does not know it refuses.
func ReadPolicy(r io.Reader) (Policy, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxPolicy+1))
	if err != nil {
		return Policy{}, fault.IOf("reading the policy: %w", err)
	}
	if len(b) > maxPolicy {
		return Policy{}, fault.Inputf("reading the policy: more than %d bytes", maxPolicy)
	}
	var f file
	if err := yaml.UnmarshalWithOptions(b, &f, yaml.Strict()); err != nil && !errors.Is(err, io.EOF) {
		return Policy{}, fault.Inputf("reading the policy: %s", strings.Join(strings.Fields(yaml.FormatError(err, false, false)), " "))
	}
	p := Policy{Name: f.Name}
	for name, g := range f.Gates {
		out := Gate{Metric: name, Max: noLimits, Min: noLimits, Sigmas: g.Sigmas, IfAny: g.IfAny}
		if g.Max != nil {
			out.Max = Limits{g.Max.warn, g.Max.fail}
		}
		if g.Min != nil {
			out.Min = Limits{g.Min.warn, g.Min.fail}
		}
		if err := out.valid(); err != nil {
			return Policy{}, fault.Inputf("reading the policy: gate %q: %w", name, err)
		}
		p.Gates = append(p.Gates, out)
	}
	if len(p.Gates) == 0 {
		return Policy{}, fault.Inputf("reading the policy: it has no gates")
	}
	slices.SortFunc(p.Gates, func(a, b Gate) int { return strings.Compare(a.Metric, b.Metric) })
	return p, nil
}

// valid refuses what would judge nothing.
func (g *Gate) valid() error {
	if err := checkName(g.Metric); err != nil {
		return err
	}
	if g.Max.empty() && g.Min.empty() {
		return errors.New("it has no limit; expected max or min")
	}
	for _, v := range []Number{g.Max.Warn, g.Max.Fail, g.Min.Warn, g.Min.Fail} {
		if math.IsInf(float64(v), 0) {
			return errors.New("a limit is infinite")
		}
	}
	if !(g.Sigmas >= 0 && g.Sigmas <= 10) {
		return errors.New("sigmas: expected 0 to 10")
	}
	return nil
}
