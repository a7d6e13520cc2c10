package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/internal/progress"
	"github.com/nf4conv/nf4conv/internal/term"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/verify"
)

// labelled appends lines "  label    text" to b, wrapped to a terminal's width.
func labelled(b *strings.Builder, width int) func(label, format string, args ...any) {
	return func(label, format string, args ...any) {
		b.WriteString(wrap(fmt.Sprintf("  %-8s ", label), visible(fmt.Sprintf(format, args...)), 11, width))
	}
}

// planText says what is about to happen, in a handful of lines.
func planText(p *convert.Plan, out string, verbose bool, width int) string {
	var b strings.Builder
	t := &p.Totals
	line := labelled(&b, width)
	b.WriteString(wrap("nf4conv: ", visible(fmt.Sprintf("%s %s -> %s", p.Verb, p.Source.Name, out)), 2, width))
	line("model", "%s, %s parameters, %s in %s", cmp.Or(p.Model.Architecture, "unknown architecture"), units.Count(t.Params),
		units.Things(len(p.Jobs), "tensor"), units.Things(len(p.Source.Files), "file"))
	showAdapters(line, p)
	if o, ok := quantizes(p); ok {
		method := fmt.Sprintf("%s, block size %d", o.TypeName, o.BlockSize)
		if o.DoubleQuant {
			method += ", double quantization"
		}
		line("4-bit", "%s, %s parameters: %s", units.Things(t.Quantized, "module"), units.Count(t.QuantizedParams), method)
	}
	for i, text := range keptText(t.Kept) {
		line([]string{p.Model.DType, ""}[min(i, 1)], "%s", text)
	}
	in, planned := fileBytes(p)
	line("size", "%s -> at most %s in %s", units.Bytes(in), units.Bytes(planned), units.Things(len(p.Files), "file"))
	if len(p.Left) > 0 {
		line("left", "%s", leftText(p.Left, verbose))
	}
	line("run", "%s, %s, buffers of %s at most", deviceText(&p.Schedule), units.Things(p.Schedule.Workers, "worker"), units.IBytes(p.Schedule.Memory))
	for _, l := range p.Loaders {
		if verbose || !l.Loads {
			line("loader", "%s: %s", l.Name, l.Why)
		}
	}
	if verbose {
		for i := range p.Jobs {
			j := &p.Jobs[i]
			fmt.Fprintf(&b, "    %-60s %-14s %s\n", visible(j.Name), fmt.Sprint(j.Shape), visible(j.Why))
		}
	}
	return b.String()
}

// fileBytes are the sizes of the weight files, read and planned.
func fileBytes(p *convert.Plan) (in, out int64) {
	for _, f := range p.Source.Files {
		in += f.Size
	}
	for _, f := range p.Files {
		out += f.HeaderSize + f.DataSize
	}
	return in, out
}

// leftText lists what is not carried: the first few, or all of it.
func leftText(left []convert.Left, all bool) string {
	var parts []string
	for i, l := range left {
		if i == 3 && !all && len(left) > 4 {
			parts = append(parts, fmt.Sprintf("and %d more (--verbose lists them)", len(left)-i))
			break
		}
		parts = append(parts, l.Name+" ("+l.Why+")")
	}
	return strings.Join(parts, ", ")
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
		parts = append(parts, fmt.Sprintf("%s in %s: %s", units.Count(g.Params), units.Things(g.Tensors, "tensor"), why))
	}
	if rest > 0 {
		parts = append(parts, fmt.Sprintf("%s more (--dry-run --json lists all)", units.Things(rest, "tensor")))
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
	// A narrow terminal has room for the share and the time only.
	width, narrow := min(60, term.Width(a.stderr)-50), false
	style := mpb.BarFillerBuilder(mpb.BarStyle())
	if width < 10 {
		width, narrow, style = 1, true, mpb.NopStyle()
	}
	pool := mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(width), mpb.WithRefreshRate(150*time.Millisecond))
	bar := pool.New(max(total, 1), style, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return "  " + stage(p) + " " })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			return fmt.Sprintf(" %3d %%  %s", meter.Percent(), speed(meter, narrow))
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
		a.say("%s: %s of %s (%d %%), %s", stage(p), units.Bytes(p.Bytes.Load()), units.Bytes(total), meter.Percent(), speed(meter, false))
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

// speed is the present rate and the time left at it, or that alone.
func speed(m *meter, short bool) string {
	left, ok := m.Left()
	if !ok {
		return ""
	}
	text := "under 1 s left"
	if left >= time.Second {
		text = units.Duration(left) + " left"
	}
	if short {
		return text
	}
	return units.Rate(int64(m.Rate()), time.Second) + ", " + text
}

// showSummary prints what a run did and what to type next.
func (a *app) showSummary(p *convert.Plan, r *convert.Result, peak int64, src string) {
	if r.Already {
		a.say("%s was complete already; an interrupted run had only its name left to give", r.Out)
		return
	}
	a.say("done: %s", r.Out)
	var b strings.Builder
	line := labelled(&b, term.Width(a.stderr))
	in, _ := fileBytes(p)
	line("size", "%s -> %s, %.2f bits per weight", units.Bytes(in), units.Bytes(r.BytesOut), r.Bits)
	speed := fmt.Sprintf("%s, of which %s for converting, at %s of source weights", units.Duration(r.Duration), units.Duration(r.Converted), units.Rate(r.BytesIn, r.Converted))
	if r.Resumed > 0 {
		speed = fmt.Sprintf("%s; %d of %s were there from an interrupted run", units.Duration(r.Duration), r.Resumed, units.Things(len(p.Jobs), "tensor"))
	}
	line("time", "%s", speed)
	line("memory", "%s at most", units.IBytes(peak))
	if len(r.Worst) > 0 {
		line("error", "%.4f relative on average", r.MeanError)
	}
	for i, t := range r.Worst[:min(3, len(r.Worst))] {
		line([]string{"worst", ""}[min(i, 1)], "%.4f %s", t.RelError, strings.TrimSuffix(t.Tensor, ".weight"))
	}
	if r.Merge != nil {
		line("delta", "%s", keptDelta(r.Merge))
	}
	line("record", "%s", r.Manifest)
	labelled(&b, 0)("next", "%s", nextCommand(p, src, r.Out)) // to be copied: never wrapped
	fmt.Fprint(a.stderr, b.String())
}

// quote makes a path safe to paste into a shell.
func quote(s string) string {
	if strings.ContainsAny(s, " \t\n'\"\\$&;|<>()*?[]#~`!") {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// nextCommand holds the output against what it should be. A merge should be the base with
// its adapters, where that can run; the base alone is another model.
func nextCommand(p *convert.Plan, src, out string) string {
	command := fmt.Sprintf("nf4conv verify %s %s", quote(src), quote(out))
	o, merged := p.Options.(convert.MergeOptions)
	if !merged {
		return command
	}
	for _, a := range o.Adapters {
		if verify.CheckUnmerged(a.Adapter) != nil {
			return fmt.Sprintf("nf4conv diff %s %s", quote(src), quote(out))
		}
		arg := "base:" + a.Adapter.Path()
		if a.Weight != 1 {
			arg += fmt.Sprintf("=%g", a.Weight)
		}
		command += " --adapter " + quote(arg)
	}
	return command + " --stage container,layers,logits"
}
