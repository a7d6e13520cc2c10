package report

import (
	"bytes"
	_ "embed"
	"html/template"
	"image/color"
	"io"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/nf4conv/nf4conv/verify"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"num": num, "withError": withError, "about": func(t verify.Text) string { return About(&t) }}).Parse(pageText))

// figure is a plot with its caption.
type figure struct {
	Title string
	SVG   template.HTML
}

// page writes one HTML file: no scripts, nothing loaded from elsewhere, light and dark.
func page(w io.Writer, r *verify.Result) error {
	doc := struct {
		*verify.Result
		Worst   []verify.Tensor
		Figures []figure
	}{r, worst(r, 15), nil}
	for _, f := range []struct {
		title string
		make  func(*verify.Result) (*plot.Plot, error)
	}{
		{"Relative error of the residual stream after every layer (0: as it enters the first)", layerPlot},
		{"KL divergence of tokens: how many tokens, by log10 of the divergence", kldPlot},
		{"Relative error of every 4-bit tensor, in the order of the file; the line is what quantizing the base gives", tensorPlot},
	} {
		p, err := f.make(r)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		svg, err := render(p)
		if err != nil {
			return err
		}
		doc.Figures = append(doc.Figures, figure{f.title, svg})
	}
	return pageTemplate.Execute(w, doc)
}

var accent = color.RGBA{0x2f, 0x7e, 0xd8, 0xff}

func newPlot(x, y string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	p.X.Label.Text, p.Y.Label.Text = x, y
	return p
}

// render draws black as the colour of the text around, which follows the scheme of the page.
func render(p *plot.Plot) (template.HTML, error) {
	const width, height = 18 * vg.Centimeter, 7 * vg.Centimeter
	c := vgsvg.New(width, height)
	p.Draw(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	s := b.String()
	s = s[strings.Index(s, "<svg"):]
	s = strings.ReplaceAll(s, "#000000", "currentColor")
	//nolint:gosec // the text in it is numbers and labels of this file
	return template.HTML(s), nil
}

// finite drops what cannot be drawn.
func finite(xy plotter.XYs) plotter.XYs {
	out := xy[:0]
	for _, p := range xy {
		if !math.IsNaN(p.Y) && !math.IsInf(p.Y, 0) {
			out = append(out, p)
		}
	}
	return out
}

func layerPlot(r *verify.Result) (*plot.Plot, error) {
	var xy plotter.XYs
	for _, l := range r.Layers {
		xy = append(xy, plotter.XY{X: float64(l.Layer), Y: float64(l.RelError)})
	}
	if xy = finite(xy); len(xy) < 2 {
		return nil, nil
	}
	p := newPlot("layer", "relative error")
	line, points, err := plotter.NewLinePoints(xy)
	if err != nil {
		return nil, err
	}
	line.Color, points.Color, points.Shape = accent, accent, draw.CircleGlyph{}
	line.Width = vg.Points(1.5)
	p.Add(plotter.NewGrid(), line, points)
	p.Y.Min, p.Y.Max = 0, 1.08*p.Y.Max // the largest does not touch the edge
	return p, nil
}

func kldPlot(r *verify.Result) (*plot.Plot, error) {
	h := &plotter.Histogram{FillColor: accent, LineStyle: draw.LineStyle{Width: 0}}
	for i, b := range r.Histogram {
		lo, hi := float64(b.From), float64(b.To)
		switch {
		case i == 0:
			lo = hi / math.Pow(10, 0.25)
		case math.IsInf(hi, 0) || math.IsNaN(hi):
			hi = lo * math.Pow(10, 0.25)
		}
		h.Bins = append(h.Bins, plotter.HistogramBin{Min: math.Log10(lo), Max: math.Log10(hi), Weight: float64(b.Count)})
	}
	if len(h.Bins) == 0 {
		return nil, nil
	}
	h.Width = h.Bins[0].Max - h.Bins[0].Min
	p := newPlot("log10 of the KL divergence", "tokens")
	p.Add(h)
	return p, nil
}

func tensorPlot(r *verify.Result) (*plot.Plot, error) {
	var got, want plotter.XYs
	for i := range r.Tensors {
		if t := &r.Tensors[i]; t.FourBit {
			x := float64(len(got))
			got = append(got, plotter.XY{X: x, Y: float64(t.RelError)})
			want = append(want, plotter.XY{X: x, Y: float64(t.Expected)})
		}
	}
	got, want = finite(got), finite(want)
	if len(got) < 2 || len(want) < 2 {
		return nil, nil
	}
	p := newPlot("4-bit tensor", "relative error")
	points, err := plotter.NewScatter(got)
	if err != nil {
		return nil, err
	}
	points.Color, points.Shape = accent, draw.CircleGlyph{}
	line, err := plotter.NewLine(want)
	if err != nil {
		return nil, err
	}
	p.Add(plotter.NewGrid(), line, points)
	p.Y.Min, p.Y.Max = 0, 1.08*p.Y.Max // the largest does not touch the edge
	return p, nil
}
