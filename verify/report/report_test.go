package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/verify"
)

// sample is a result in which everything that is awkward to print occurs.
func sample() *verify.Result {
	nan, inf := verify.Number(math.NaN()), verify.Number(math.Inf(1))
	r := &verify.Result{
		Schema: verify.Schema, Kind: "4-bit", Causal: true, Diverges: 1,
		Stages:   []verify.Stage{{Name: verify.StageWeights, Ran: true}, {Name: verify.StageLogits, Why: "no <ids> | none"}},
		Findings: []verify.Finding{{Where: "a<script>b", Text: "one\ntwo"}},
		Metrics:  []verify.Metric{{Name: "weights.rel_error", Value: 0.25, StdErr: nan, Samples: 2}},
		Tensors: []verify.Tensor{
			{Name: "x<y", FourBit: true, RelError: 0.1, Expected: 0.1, ErrorRatio: 1, Gain: 1}, {Name: "z", FourBit: true, RelError: nan, Expected: 0.1, ErrorRatio: nan, Gain: inf},
			{Name: "u", FourBit: true, RelError: 0.2, Expected: 0.1, ErrorRatio: 2, Gain: 1},
		},
		Layers:    []verify.Layer{{Layer: 0}, {Layer: 1, RelError: 0.7}, {Layer: 2, RelError: nan}},
		Rederived: &verify.Rederived{Verb: "quantize", Tool: "t<u", Sample: "all", Tensors: 1, Of: 2, Differences: []verify.Difference{{File: "f", Tensor: "v<w", Element: 17, Bytes: 2, Text: "code 1; expected 2"}}},
		Histogram: []verify.Bin{{From: 0, To: 1e-6, Count: 3}, {From: 1e-6, To: 1e-5, Count: 4}, {From: 100, To: inf}},
	}
	p, err := verify.ReadPolicy(strings.NewReader("name: a&b\ngates: {weights.rel_error: {max: 0.1}, fourbit.gain: {max: 1.03}, top1: {min: 0.9}}"))
	if err != nil {
		panic(err)
	}
	p.Judge(r)
	return r
}

func write(t *testing.T, format string) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, format, sample()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestFormats(t *testing.T) {
	var r verify.Result
	if err := json.Unmarshal([]byte(write(t, "json")), &r); err != nil || r.Verdict != verify.Fail || !math.IsNaN(float64(r.Tensors[1].RelError)) {
		t.Errorf("json: %v, %+v", err, r)
	}
	var s suite
	if err := xml.Unmarshal([]byte(write(t, "junit")), &s); err != nil || s.Tests != 3 || s.Failures != 3 || len(s.Cases) != 3 || s.Cases[0].Failure == nil {
		t.Errorf("junit: %v, %+v", err, s)
	}
	for format, want := range map[string][]string{
		"md":   {"verify: FAIL", "a&lt;script>b: one two", "NOT RUN: logits: no &lt;ids> \\| none", "| z | - | 0.1 | - |", "Differs: f: v&lt;w: element 17: code 1; expected 2 (2 bytes differ)"},
		"text": {"NOT RUN    logits: no <ids> | none", "FAIL  weights.rel_error 0.25 (at most 0.1)", "diverges first       layer 1", "differs    f: v<w: element 17: code 1", "verdict    FAIL"},
		"html": {"a&lt;script&gt;b", "not run: logits", "x&lt;y", "t&lt;u: 1 of 2 tensors", "v&lt;w", "<svg", "a&amp;b"},
	} {
		got := write(t, format)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q is not in it:\n%.3000s", format, w, got)
			}
		}
	}
	if n := strings.Count(write(t, "html"), "<svg"); n != 3 {
		t.Errorf("html: %d plots, want 3", n)
	}
	if err := Write(&bytes.Buffer{}, "pdf", sample()); err == nil {
		t.Error("an unknown format is written")
	}
}

// TestBrowser renders the page in Chromium, where there is one, and looks at what became of it.
func TestBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if strings.Contains(os.Getenv("NF4CONV_TEST_REQUIRE"), "chromium") {
			t.Fatal("NF4CONV_TEST_REQUIRE asks for chromium, which is not there")
		}
		t.Skip("SKIPPED: there is no chromium on the PATH")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "r.html")
	if err := os.WriteFile(path, []byte(write(t, "html")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+filepath.Join(dir, "profile"), "--dump-dom", "file://"+path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"<title>nf4conv verify: fail</title>", "<svg", "</html>"} {
		if !strings.Contains(string(out), w) {
			t.Errorf("%q is not in the page that Chromium made", w)
		}
	}
}
