package verify

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// A Gate is the limits of one figure. A limit that is absent is not checked; one that is met
// exactly is kept.
type Gate struct {
	Metric string `json:"metric"`
	// Max are upper limits: more than Warn is a warning, more than Fail a failure.
	Max Limits `json:"max"`
	// Min are lower limits.
	Min Limits `json:"min"`
	// Sigmas is how many standard errors a figure may be beyond a limit, so that chance does
	// not fail a run. A figure without an error has none to add.
	Sigmas float64 `json:"sigmas"`
	// IfAny lets a gate of tensors pass where the candidate has no such tensor; without it
	// that is a failure.
	IfAny bool `json:"if_any"`
}

// Limits are two limits; null: none.
type Limits struct {
	Warn Number `json:"warn"`
	Fail Number `json:"fail"`
}

var noLimits = Limits{Number(math.NaN()), Number(math.NaN())}

func (l Limits) empty() bool { return math.IsNaN(float64(l.Warn)) && math.IsNaN(float64(l.Fail)) }

// A Policy is gates under a name.
type Policy struct {
	Name  string `json:"name"`
	Gates []Gate `json:"gates"`
}

// Outcome is what a gate made of a result.
type Outcome struct {
	Gate  Gate  `json:"gate"`
	Level Level `json:"level"`
	// Value is the figure, of tensors and layers that of the worst one.
	Value  Number `json:"value"`
	StdErr Number `json:"std_err"`
	// Where names what is beyond a limit, worst first: tensors or layers.
	Where []string `json:"where"`
	Text  string   `json:"text"` // one line for people
}

// figure is one value that a gate looks at.
type figure struct {
	where         string
	value, stdErr float64
}

// scalars are the figures that a run can have, by stage.
var scalars = map[string]string{
	"container.findings": StageContainer, "loaders.disagree": StageContainer, "weights.rel_error": StageWeights,
	"hidden.rel_error": StageLayers, "hidden.cosine": StageLayers,
	"tokens": StageLogits, "kld.mean": StageLogits, "kld.median": StageLogits, "kld.p90": StageLogits, "kld.p99": StageLogits,
	"kld.p999": StageLogits, "kld.max": StageLogits, "top1": StageLogits, "top5": StageLogits, "ppl.base": StageLogits,
	"ppl.candidate": StageLogits, "ppl.ratio": StageLogits, "dp.mean": StageLogits, "dp.rms": StageLogits,
	"rederive.tensors": StageRederive, "rederive.share": StageRederive, "rederive.differences": StageRederive,
}

// ofTensor are the figures of a tensor; those of quantization exist for 4-bit ones only.
var ofTensor = map[string]func(*Tensor) Number{
	"rel_error": func(t *Tensor) Number { return t.RelError }, "sqnr_db": func(t *Tensor) Number { return t.SQNR },
	"cosine": func(t *Tensor) Number { return t.Cosine }, "max_error": func(t *Tensor) Number { return t.MaxError },
	"gain": func(t *Tensor) Number { return t.Gain },
}

var ofFourBit = map[string]func(*Tensor) Number{
	"expected": func(t *Tensor) Number { return t.Expected }, "error_ratio": func(t *Tensor) Number { return t.ErrorRatio },
	"requantize_changed": func(t *Tensor) Number { return t.Requantize },
}

var ofLayer = map[string]func(*Layer) Number{
	"rel_error": func(l *Layer) Number { return l.RelError }, "growth": func(l *Layer) Number { return l.Growth },
	"cosine": func(l *Layer) Number { return l.Cosine }, "cosine_min": func(l *Layer) Number { return l.CosineMin },
}

// known tells whether there are figures of a name.
func known(name string) bool {
	if _, ok := scalars[name]; ok {
		return true
	}
	kind, rest, _ := strings.Cut(name, ".")
	switch kind {
	case "fourbit":
		return ofTensor[rest] != nil || ofFourBit[rest] != nil
	case "kept":
		return ofTensor[rest] != nil
	case "layer":
		return ofLayer[rest] != nil
	}
	return false
}

// Stage is the stage that measures what a gate looks at; empty for a name that is unknown.
func (g *Gate) Stage() string {
	if s := scalars[g.Metric]; s != "" {
		return s
	}
	switch {
	case !known(g.Metric):
		return ""
	case strings.HasPrefix(g.Metric, "layer."):
		return StageLayers
	}
	return StageWeights
}

// figures are what a gate looks at in a result.
func (r *Result) figures(name string) []figure {
	var out []figure
	kind, rest, _ := strings.Cut(name, ".")
	switch kind {
	case "fourbit", "kept":
		get := ofTensor[rest]
		if get == nil {
			get = ofFourBit[rest]
		}
		for i := range r.Tensors {
			if t := &r.Tensors[i]; t.FourBit == (kind == "fourbit") {
				if rest == "sqnr_db" && t.RelError == 0 {
					continue // nothing differs
				}
				out = append(out, figure{t.Name, float64(get(t)), math.NaN()})
			}
		}
	case "layer":
		for i := range r.Layers {
			out = append(out, figure{fmt.Sprintf("layer %d", r.Layers[i].Layer), float64(ofLayer[rest](&r.Layers[i])), math.NaN()})
		}
	default:
		if m, ok := r.Metric(name); ok && m.Samples > 0 {
			out = append(out, figure{"", float64(m.Value), float64(m.StdErr)})
		}
	}
	return out
}

// Judge applies the gates to what was measured and sets Policy, Outcomes and Verdict. It
// fails closed: a policy without gates, a figure that was not measured or is no number, and
// a name that does not exist are failures.
func (p Policy) Judge(r *Result) {
	r.Policy, r.Outcomes, r.Verdict = p, []Outcome{}, Pass
	for _, g := range p.Gates {
		o := g.judge(r)
		r.Outcomes = append(r.Outcomes, o)
		r.Verdict = worse(r.Verdict, o.Level)
	}
	if len(p.Gates) == 0 {
		r.Verdict = Fail
		r.Outcomes = append(r.Outcomes, Outcome{
			Gate: Gate{Max: noLimits, Min: noLimits}, Level: Fail, Value: Number(math.NaN()), StdErr: Number(math.NaN()),
			Where: []string{}, Text: "the policy has no gates: nothing was judged",
		})
	}
}

func (g Gate) judge(r *Result) Outcome {
	o := Outcome{Gate: g, Level: Pass, Value: Number(math.NaN()), StdErr: Number(math.NaN()), Where: []string{}}
	refuse := func(format string, a ...any) Outcome {
		o.Level, o.Text = Fail, g.Metric+": "+fmt.Sprintf(format, a...)
		return o
	}
	switch {
	case !known(g.Metric):
		return refuse("there is no figure of this name")
	case g.Max.empty() && g.Min.empty():
		return refuse("the gate has no limit")
	}
	ran := false
	for _, s := range r.Stages {
		if s.Name == g.Stage() {
			ran = s.Ran
			if !ran {
				return refuse("not measured: %s", s.Why)
			}
		}
	}
	all := r.figures(g.Metric)
	if len(all) == 0 {
		if ran && g.IfAny {
			o.Text = g.Metric + ": the candidate has none"
			return o
		}
		return refuse("not measured: there are no samples")
	}
	return g.compare(r, all, o)
}

// compare finds what is beyond a limit.
func (g Gate) compare(r *Result, all []figure, o Outcome) Outcome {
	type bad struct {
		figure
		level Level
		by    float64
		limit string
	}
	var list []bad
	worst := bad{by: math.Inf(-1)}
	for _, f := range all {
		b := bad{figure: f, level: Pass, by: math.Inf(-1)}
		b.level, b.by, b.limit = g.check(f)
		if b.by > worst.by {
			worst = b
		}
		if b.level != Pass {
			list = append(list, b)
		}
		o.Level = worse(o.Level, b.level)
	}
	// Worst first; a stable order of few.
	for i := 1; i < len(list); i++ {
		for k := i; k > 0 && list[k].by > list[k-1].by; k-- {
			list[k], list[k-1] = list[k-1], list[k]
		}
	}
	o.Value, o.StdErr = Number(worst.value), Number(worst.stdErr)
	for _, b := range list {
		if b.where != "" {
			o.Where = append(o.Where, b.where)
		}
	}
	if g.Metric == "rederive.differences" {
		o.Where = r.differing()
	}
	o.Text = g.Metric + " " + figureText(worst.figure) + worst.limit
	if n := len(o.Where); n > 0 {
		o.Text += ": " + strings.Join(o.Where[:min(n, 3)], ", ")
		if n > 3 {
			o.Text += fmt.Sprintf(" and %d more", n-3)
		}
	}
	return o
}

// check is the verdict on a value and by how much it is beyond the limit that it is nearest
// to or farthest beyond, in units of that limit.
func (g Gate) check(f figure) (level Level, by float64, limit string) {
	if math.IsNaN(f.value) || math.IsInf(f.value, 0) {
		return Fail, math.Inf(1), ", which is no number"
	}
	slack := 0.0
	if g.Sigmas > 0 && f.stdErr > 0 {
		slack = g.Sigmas * f.stdErr
	}
	level, by = Pass, math.Inf(-1)
	for _, c := range []struct {
		limit Number
		sign  float64
		level Level
		word  string
	}{{g.Max.Warn, 1, Warn, "at most"}, {g.Min.Warn, -1, Warn, "at least"}, {g.Max.Fail, 1, Fail, "at most"}, {g.Min.Fail, -1, Fail, "at least"}} {
		l := float64(c.limit)
		if math.IsNaN(l) {
			continue
		}
		d := c.sign * (f.value - l)
		if rel := d / max(math.Abs(l), 1e-12); rel > by {
			by = rel
		}
		beyond := !(d-slack <= 0)
		if beyond || limit == "" {
			limit = fmt.Sprintf(" (%s %s)", c.word, strconv.FormatFloat(l, 'g', 5, 64))
		}
		if beyond {
			level = worse(level, c.level)
		}
	}
	return level, by, limit
}

func figureText(f figure) string {
	s := strconv.FormatFloat(f.value, 'g', 5, 64)
	if !math.IsNaN(f.stdErr) {
		s += " +- " + strconv.FormatFloat(f.stdErr, 'g', 2, 64)
	}
	return s
}

// Err is nil for a verdict that lets a run succeed: pass, and unless strict warn. Otherwise
// it is an error of class fault.Gate that names what failed first.
func (r *Result) Err(strict bool) error {
	if r.Verdict == Pass || r.Verdict == Warn && !strict {
		return nil
	}
	var texts []string
	for _, o := range r.Outcomes {
		if o.Level == r.Verdict {
			texts = append(texts, o.Text)
		}
	}
	if len(texts) == 0 {
		return fault.Gatef("%q was not judged", r.Candidate.Path)
	}
	more := ""
	if len(texts) > 3 {
		texts, more = texts[:3], fmt.Sprintf("; and %d gates more", len(texts)-3)
	}
	return fault.Gatef("%q against %q: %s%s", r.Candidate.Path, r.Base.Path, strings.Join(texts, "; "), more)
}
