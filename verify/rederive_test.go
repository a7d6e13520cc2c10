package verify_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/nf4conv/nf4conv/verify"
)

// TestSample: the size that was asked for, the same names for a seed, others for another.
func TestSample(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprint("tensor ", i))
	}
	for text, want := range map[string]int{"all": 40, "3": 3, "100": 40, "10%": 4, "0.11": 5, "0.001": 1, "100%": 40, "1.0": 40} {
		s, err := verify.ParseSample(text, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Choose(names); len(got) != want {
			t.Errorf("%s: %d of 40, want %d", text, len(got), want)
		}
	}
	choose := func(seed int64) string {
		s, err := verify.ParseSample("8", seed)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(s.Choose(names))
	}
	if first, again := choose(1), choose(1); first != again || first == choose(2) {
		t.Error("a sample is not a function of the seed")
	}
	for _, text := range []string{"", "0", "-1", "0.0", "1.5", "101%", "%", "5%%", "NaN", "Inf", "some", "1e999", "0x1p-2%%"} {
		if s, err := verify.ParseSample(text, 0); err == nil {
			t.Errorf("%q is read as %+v", text, s)
		}
	}
}

// TestRederiveGates: a difference and a sample of nothing fail, and so does a stage that did not run.
func TestRederiveGates(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	for _, c := range []struct {
		name string
		r    *verify.Rederived
		want verify.Level
	}{
		{"equal", &verify.Rederived{Tensors: 1, Of: 2}, verify.Pass},
		{"different", &verify.Rederived{Tensors: 1, Of: 2, Differences: []verify.Difference{{Tensor: "x"}}}, verify.Fail},
		{"nothing", &verify.Rederived{Of: 2}, verify.Fail},
		{"not run", nil, verify.Fail},
	} {
		o := verify.Options{Stages: []string{verify.StageRederive}}
		if c.r != nil {
			o.Rederive = func(context.Context) (*verify.Rederived, error) { return c.r, nil }
		}
		r := run(t, base, base, o)
		verify.Policy{Gates: verify.RederiveGates()}.Judge(r)
		if r.Verdict != c.want {
			t.Errorf("%s: %s, want %s", c.name, r.Verdict, c.want)
		}
	}
}
