package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/internal/progress"
	"github.com/nf4conv/nf4conv/internal/term"
	"github.com/nf4conv/nf4conv/internal/units"
)

// showPlan prints what is about to happen, in a handful of lines.
func (a *app) showPlan(w io.Writer, p *convert.Plan, out string, verbose bool) {
	t := &p.Totals
	line := func(label, format string, args ...any) {
		fmt.Fprintf(w, "  %-8s %s\n", label, fmt.Sprintf(format, args...))
	}
	name := p.Model.Architecture
	if name == "" {
		name = "unknown architecture"
	}
	fmt.Fprintf(w, "nf4conv: %s %s -> %s\n", p.Verb, p.Source.Name, out)
	line("model", "%s, %s parameters, %d tensors in %d %s", name, units.Count(t.Params), len(p.Jobs), len(p.Source.Files), plural(len(p.Source.Files), "file"))
	if p.Verb == "quantize" {
		o, _ := p.Options.(convert.QuantizeOptions)
		method := fmt.Sprintf("%s, block size %d", o.TypeName, o.BlockSize)
		if o.DoubleQuant {
			method += ", double quantization"
		}
		line("4-bit", "%d modules, %s parameters: %s", t.Quantized, units.Count(t.QuantizedParams), method)
	}
	for i, text := range keptText(t.Kept) {
		line([]string{p.Model.DType, ""}[min(i, 1)], "%s", text)
	}
	line("size", "%s -> %s in %d %s", units.Bytes(t.BytesIn), units.Bytes(t.BytesOut), len(p.Files), plural(len(p.Files), "file"))
	line("run", "%s, %d %s, buffers of %s at most", deviceText(&p.Schedule), p.Schedule.Workers, plural(p.Schedule.Workers, "worker"), units.IBytes(p.Schedule.Memory))
	for _, l := range p.Loaders {
		if verbose {
			line("loader", "%s: %s", l.Name, l.Why)
		}
	}
	if verbose {
		for i := range p.Jobs {
			j := &p.Jobs[i]
			fmt.Fprintf(w, "    %-60s %-18v %s\n", j.Name, j.Shape, j.Why)
		}
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// deviceText is where a run computes: "cpu", or "cuda:0 (144 MiB), cuda:1 (144 MiB)".
func deviceText(s *convert.Schedule) string {
	var parts []string
	for _, d := range s.Devices {
		parts = append(parts, fmt.Sprintf("%s (%s)", d.Name, units.IBytes(d.Memory)))
	}
	if len(parts) == 0 {
		return "cpu"
	}
	return strings.Join(parts, ", ")
}

// keptText lists what is not quantized and why: in one line where that is short, else
// in a line for each reason.
func keptText(groups []convert.KeptGroup) []string {
	var parts []string
	rest := 0
	for i, g := range groups {
		if i >= 5 {
			rest += g.Tensors
			continue
		}
		why := strings.TrimPrefix(g.Why, "16-bit: ")
		parts = append(parts, fmt.Sprintf("%s in %d %s: %s", units.Count(g.Params), g.Tensors, plural(g.Tensors, "tensor"), why))
	}
	if rest > 0 {
		parts = append(parts, fmt.Sprintf("%d tensors more (--dry-run --json lists all)", rest))
	}
	if one := strings.Join(parts, ", "); len(one) <= 90 {
		return []string{cmp.Or(one, "nothing")}
	}
	return parts
}

// showProgress follows a run: a bar on a terminal, else a line now and then. The
// returned function ends it.
func (a *app) showProgress(p *convert.Progress, plan *convert.Plan, g *global) (stop func()) {
	total := plan.Totals.BytesIn
	switch {
	case g.quiet || g.progress == "none":
		return func() {}
	case g.progress == "auto" && term.Width(a.stderr) > 0:
		return a.bar(p, total)
	}
	return a.lines(p, total)
}

// bar draws until it is stopped.
func (a *app) bar(p *convert.Progress, total int64) func() {
	meter := newMeter(p, total)
	pool := mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(min(60, term.Width(a.stderr)-50)), mpb.WithRefreshRate(150*time.Millisecond))
	bar := pool.AddBar(max(total, 1), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return "  " + stage(p) + " " })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			return fmt.Sprintf(" %3d %%  %s", meter.Percent(), speed(meter))
		})))
	stop := every(100*time.Millisecond, func() {
		meter.read()
		bar.SetCurrent(min(p.Bytes.Load(), max(total, 1)-1))
	})
	return func() {
		stop()
		bar.Abort(true)
		pool.Wait()
	}
}

// lines prints where the run is every few seconds.
func (a *app) lines(p *convert.Progress, total int64) func() {
	meter := newMeter(p, total)
	return every(plainInterval, func() {
		meter.read()
		a.say("%s: %s of %s (%d %%), %s", stage(p), units.Bytes(p.Bytes.Load()), units.Bytes(total), meter.Percent(), speed(meter))
	})
}

// meter is a progress.Meter on a run. Stages go at rates of their own.
type meter struct {
	*progress.Meter
	run   *convert.Progress
	stage string
}

func newMeter(p *convert.Progress, total int64) *meter {
	return &meter{progress.NewMeter(time.Now(), p.Bytes.Load(), total), p, stage(p)}
}

func (m *meter) read() {
	if s := stage(m.run); s != m.stage {
		m.stage = s
		m.Restart(time.Now(), m.run.Bytes.Load())
		return
	}
	m.Add(time.Now(), m.run.Bytes.Load())
}

// every calls f at an interval until the returned function is called.
func every(interval time.Duration, f func()) (stop func()) {
	done, finished := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(finished)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-finished }
}

func stage(p *convert.Progress) string {
	if s := p.Stage.Load(); s != nil {
		return *s
	}
	return "starting"
}

// speed is the present rate and the time left at it.
func speed(m *meter) string {
	left, ok := m.Left()
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s, %s left", units.Rate(int64(m.Rate()), time.Second), units.Duration(left))
}

// showSummary prints what a run did and what to type next.
func (a *app) showSummary(p *convert.Plan, r *convert.Result, peak int64, src string) {
	line := func(label, format string, args ...any) {
		fmt.Fprintf(a.stderr, "  %-8s %s\n", label, fmt.Sprintf(format, args...))
	}
	if r.Already {
		a.say("%s was complete already; an interrupted run had only its name left to give", r.Out)
		return
	}
	a.say("done: %s", r.Out)
	line("size", "%s -> %s, %.2f bits per weight", units.Bytes(r.BytesIn), units.Bytes(r.BytesOut), r.Bits)
	speed := fmt.Sprintf("%s, %s", units.Duration(r.Duration), units.Rate(r.BytesIn, r.Converted))
	if r.Resumed > 0 {
		speed = fmt.Sprintf("%s; %d of %d tensors were there from an interrupted run", units.Duration(r.Duration), r.Resumed, len(p.Jobs))
	}
	line("time", "%s, peak memory %s", speed, units.IBytes(peak))
	if len(r.Worst) > 0 {
		line("error", "%.4f relative on average; worst %s", r.MeanError, worst(r.Worst))
	}
	line("record", "%s", r.Manifest)
	next := fmt.Sprintf("nf4conv diff %s %s", quote(src), quote(r.Out))
	line("next", "%s", next)
}

func worst(ts []convert.TensorError) string {
	var parts []string
	for i, t := range ts {
		if i < 3 {
			parts = append(parts, fmt.Sprintf("%.4f %s", t.RelError, strings.TrimSuffix(t.Tensor, ".weight")))
		}
	}
	return strings.Join(parts, ", ")
}

// quote makes a path safe to paste into a shell.
func quote(s string) string {
	if strings.ContainsAny(s, " \t\n'\"\\$&;|<>()*?[]#~`!") {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}
