// Package report writes the result of a verification as JSON (docs/schema/verify.json), as
// JUnit XML for CI systems (one test case per gate; warnings are system-out, failures are
// failures), as Markdown for step summaries, as a table for terminals, and as one HTML
// file that needs nothing besides itself. Writers see a [verify.Result] and nothing else.
package report

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

// Formats are the names of the forms that Write knows.
var Formats = []string{"json", "junit", "html", "md", "text"}

// Write writes a judged result in one of the Formats.
func Write(w io.Writer, format string, r *verify.Result) error {
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	case "junit":
		return junit(w, r)
	case "md":
		_, err := io.WriteString(w, markdown(r))
		return err
	case "html":
		return page(w, r)
	case "text":
		_, err := io.WriteString(w, Text(r))
		return err
	}
	return fault.Usagef("report format %q: expected %s", format, strings.Join(Formats, ", "))
}

// About says in a line what the models were run on.
func About(t *verify.Text) string {
	if t.Tokens == 0 {
		return "no text"
	}
	s := fmt.Sprintf("%d sequences, %d tokens", t.Sequences, t.Tokens)
	if t.Name != "" {
		s = t.Name + ": " + s
	}
	if t.Context > 0 {
		s += fmt.Sprintf(", context %d", t.Context)
	}
	s += "; attention " + t.Attention
	if t.Attended < 1 {
		s += fmt.Sprintf(", %.4g %% of dense", 100*float64(t.Attended))
	}
	return s
}

// Text is the result as a table.
func Text(r *verify.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "base       %s\ncandidate  %s (%s)\n", r.Base.Path, r.Candidate.Path, r.Kind)
	if r.Text.Tokens > 0 {
		fmt.Fprintf(&b, "text       %s\n", About(&r.Text))
		for i, list := range [][]string{r.BaseAdapters, r.Adapters} {
			if len(list) > 0 {
				fmt.Fprintf(&b, "adapter    of the %s, not merged: %s\n", []string{"base", "candidate"}[i], strings.Join(list, ", "))
			}
		}
	}
	for _, s := range r.Stages {
		if !s.Ran {
			fmt.Fprintf(&b, "NOT RUN    %s: %s\n", s.Name, s.Why)
		}
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "finding    %s: %s\n", f.Where, f.Text)
	}
	for _, m := range r.Metrics {
		fmt.Fprintf(&b, "%-20s %s\n", m.Name, withError(m))
	}
	for _, t := range worst(r, 3) {
		fmt.Fprintf(&b, "%-20s %s  relative error %s, expected %s, gain %s\n", "worst tensor", t.Name, num(t.RelError), num(t.Expected), num(t.Gain))
	}
	if r.Diverges >= 0 {
		fmt.Fprintf(&b, "%-20s layer %d\n", "diverges first", r.Diverges)
	}
	for _, d := range differences(r, 5) {
		fmt.Fprintf(&b, "differs    %s\n", d)
	}
	for _, o := range r.Outcomes {
		fmt.Fprintf(&b, "%-4s  %s\n", strings.ToUpper(string(o.Level)), o.Text)
	}
	fmt.Fprintf(&b, "verdict    %s (policy: %s)\n", strings.ToUpper(string(r.Verdict)), r.Policy.Name)
	return b.String()
}

func num(n verify.Number) string {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return "-"
	}
	return strconv.FormatFloat(float64(n), 'g', 5, 64)
}

func withError(m verify.Metric) string {
	s := num(m.Value)
	if e := float64(m.StdErr); !math.IsNaN(e) {
		s += " ± " + strconv.FormatFloat(e, 'g', 2, 64)
	}
	return s
}

// differences are the first n things that the repeated conversion writes otherwise, one line
// each, and how many more there are.
func differences(r *verify.Result, n int) []string {
	if r.Rederived == nil {
		return nil
	}
	var out []string
	all := r.Rederived.Differences
	for _, d := range all[:min(n, len(all))] {
		out = append(out, d.String())
	}
	if len(all) > n {
		out = append(out, fmt.Sprintf("and %d more", len(all)-n))
	}
	return out
}

// worst are the n tensors of the largest error ratio, or relative error.
func worst(r *verify.Result, n int) []verify.Tensor {
	list := append([]verify.Tensor(nil), r.Tensors...)
	key := func(t *verify.Tensor) float64 {
		v := float64(t.ErrorRatio)
		if !t.FourBit {
			v = float64(t.RelError)
		}
		if math.IsNaN(v) {
			return math.Inf(1)
		}
		return v
	}
	for i := 1; i < len(list); i++ {
		for k := i; k > 0 && key(&list[k]) > key(&list[k-1]); k-- {
			list[k], list[k-1] = list[k-1], list[k]
		}
	}
	return list[:min(n, len(list))]
}

type suite struct {
	XMLName  xml.Name `xml:"testsuite"`
	Name     string   `xml:"name,attr"`
	Tests    int      `xml:"tests,attr"`
	Failures int      `xml:"failures,attr"`
	Cases    []tcase  `xml:"testcase"`
}

type tcase struct {
	Class   string   `xml:"classname,attr"`
	Name    string   `xml:"name,attr"`
	Failure *failure `xml:"failure"`
	Out     string   `xml:"system-out,omitempty"`
}

type failure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

func junit(w io.Writer, r *verify.Result) error {
	s := suite{Name: "nf4conv verify " + r.Candidate.Path, Tests: len(r.Outcomes)}
	for _, o := range r.Outcomes {
		c := tcase{Class: "nf4conv.verify", Name: o.Gate.Metric}
		if c.Name == "" {
			c.Name = "policy"
		}
		if o.Level == verify.Fail {
			s.Failures++
			c.Failure = &failure{o.Text, strings.Join(o.Where, "\n")}
		} else {
			c.Out = string(o.Level) + ": " + o.Text
		}
		s.Cases = append(s.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func markdown(r *verify.Result) string {
	var b strings.Builder
	esc := strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;", "`", "'").Replace
	fmt.Fprintf(&b, "## nf4conv verify: %s\n\n`%s` against `%s`; %s; policy %s\n\n| | gate |\n|---|---|\n", strings.ToUpper(string(r.Verdict)), esc(r.Candidate.Path), esc(r.Base.Path), esc(About(&r.Text)), esc(r.Policy.Name))
	for _, o := range r.Outcomes {
		fmt.Fprintf(&b, "| %s | %s |\n", o.Level, esc(o.Text))
	}
	b.WriteString("\n| figure | value |\n|---|---:|\n")
	for _, m := range r.Metrics {
		fmt.Fprintf(&b, "| %s | %s |\n", m.Name, withError(m))
	}
	b.WriteString("\n| worst tensors | relative error | expected | gain |\n|---|---:|---:|---:|\n")
	for _, t := range worst(r, 5) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", esc(t.Name), num(t.RelError), num(t.Expected), num(t.Gain))
	}
	for _, d := range differences(r, 20) {
		fmt.Fprintf(&b, "\nDiffers: %s\n", esc(d))
	}
	for _, s := range r.Stages {
		if !s.Ran {
			fmt.Fprintf(&b, "\nNOT RUN: %s: %s\n", s.Name, esc(s.Why))
		}
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "\nFinding: %s: %s\n", esc(f.Where), esc(f.Text))
	}
	return b.String()
}
