package verify_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/verify"
)

func nan() verify.Number { return verify.Number(math.NaN()) }

// measured is a result with one figure.
func measured(name string, value, stdErr float64, samples int64) *verify.Result {
	r := &verify.Result{Metrics: []verify.Metric{{Name: name, Value: verify.Number(value), StdErr: verify.Number(stdErr), Samples: samples}}}
	for _, s := range verify.Stages {
		r.Stages = append(r.Stages, verify.Stage{Name: s, Ran: true})
	}
	return r
}

func TestGates(t *testing.T) {
	atMost := func(warn, fail verify.Number, sigmas float64) verify.Gate {
		return verify.Gate{Metric: "kld.mean", Max: verify.Limits{Warn: warn, Fail: fail}, Min: verify.Limits{Warn: nan(), Fail: nan()}, Sigmas: sigmas}
	}
	for _, c := range []struct {
		name string
		gate verify.Gate
		r    *verify.Result
		want verify.Level
	}{
		{"below", atMost(1, 2, 0), measured("kld.mean", 0.5, 0.1, 9), verify.Pass},
		{"at the limit", atMost(1, 2, 0), measured("kld.mean", 1, 0.1, 9), verify.Pass},
		{"between", atMost(1, 2, 0), measured("kld.mean", 1.5, 0.1, 9), verify.Warn},
		{"above", atMost(1, 2, 0), measured("kld.mean", 2.5, 0.1, 9), verify.Fail},
		{"above within chance", atMost(nan(), 2, 3), measured("kld.mean", 2.2, 0.1, 9), verify.Pass},
		{"above beyond chance", atMost(nan(), 2, 1), measured("kld.mean", 2.2, 0.1, 9), verify.Fail},
		{"chance unknown", atMost(nan(), 2, 3), measured("kld.mean", 2.2, math.NaN(), 9), verify.Fail},
		{"NaN", atMost(1, 2, 0), measured("kld.mean", math.NaN(), 0, 9), verify.Fail},
		{"-Inf", atMost(1, 2, 0), measured("kld.mean", math.Inf(-1), 0, 9), verify.Fail},
		{"no samples", atMost(1, 2, 0), measured("kld.mean", 0.5, 0, 0), verify.Fail},
		{"another figure", atMost(1, 2, 0), measured("top1", 0.5, 0, 9), verify.Fail},
		{"no limit", atMost(nan(), nan(), 0), measured("kld.mean", 0.5, 0, 9), verify.Fail},
		{"unknown name", verify.Gate{Metric: "kld", Max: verify.Limits{Warn: 1, Fail: 1}}, measured("kld", 0.5, 0, 9), verify.Fail},
		{"no stages", atMost(1, 2, 0), &verify.Result{}, verify.Fail},
	} {
		verify.Policy{Gates: []verify.Gate{c.gate}}.Judge(c.r)
		if c.r.Verdict != c.want {
			t.Errorf("%s: %s (%s), want %s", c.name, c.r.Verdict, c.r.Outcomes[0].Text, c.want)
		}
		if err := c.r.Err(false); (err != nil) != (c.want == verify.Fail) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if err := c.r.Err(true); (err != nil) != (c.want != verify.Pass) {
			t.Errorf("%s, strict: error %v", c.name, err)
		}
	}
	var r verify.Result
	if r.Err(false) == nil {
		t.Error("a result that was not judged succeeds")
	}
	verify.Policy{}.Judge(&r)
	if r.Verdict != verify.Fail {
		t.Error("a policy without gates does not fail")
	}
}

// FuzzPolicy: no policy panics, and none lets an empty result pass.
func FuzzPolicy(f *testing.F) {
	for _, s := range []string{
		"", "{}", "gates: {}", "gates: {kld.mean: {max: 1}}", "gates: {kld.mean: {max: {warn: 1, fail: 2}, sigmas: 2}}", "gates: {kld.mean: {max: .nan}}",
		"gates: {kld.mean: {max: .inf}}", "gates: {kld.mean: }", "gates: [1]", "a: &a [*a]", "gates: {fourbit.gain: {min: 0.9, if_any: true}}", "\x00", "gates: {kept.: {max: 1}}",
		"gates: {top1: {max: }}", "name: x\ngates: {top1: {min: {fail: 1e999}}}", "gates: {kld.mean: {max: 1, max: 2}}", "- - - -", "gates: !!binary x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := verify.ReadPolicy(strings.NewReader(s))
		if err != nil {
			return
		}
		var r verify.Result
		p.Judge(&r)
		if r.Verdict != verify.Fail {
			t.Errorf("policy %q: an empty result gets %s", s, r.Verdict)
		}
		if _, err := json.Marshal(&r); err != nil {
			t.Errorf("policy %q: %v", s, err)
		}
	})
}
