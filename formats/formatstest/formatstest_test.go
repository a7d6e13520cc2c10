package formatstest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/weights"
)

// TestMalformed wants every malformed checkpoint refused as invalid input, with the
// place and the reason, before anything is written.
func TestMalformed(t *testing.T) {
	cases := formatstest.Malformed(t, t.TempDir())
	if len(cases) < 200 {
		t.Errorf("%d cases, want 200 and more", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			planned, err := open(c, filepath.Join(t.TempDir(), "out"))
			if err == nil {
				t.Fatal("accepted")
			}
			t.Log(err)
			if class := fault.ClassOf(err); class != fault.Input {
				t.Errorf("class %v, want %v (input): %v", class, fault.Input, err)
			}
			if planned != c.Runtime {
				t.Errorf("found when running: %v, want %v: %v", planned, c.Runtime, err)
			}
			if missing := c.Missing(err.Error()); len(missing) > 0 {
				t.Errorf("the message lacks %q: %v", missing, err)
			}
			if len(c.Want) == 0 {
				t.Error("the case asks for no file name")
			}
		})
	}
}

// open takes a case as far as it goes: planned tells whether that was beyond a plan.
func open(c formatstest.Case, out string) (planned bool, err error) {
	src, err := hf.Open(c.Path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if _, err := weights.Open(src); err != nil {
		return false, err
	}
	o := convert.DefaultQuantize()
	if i := slices.Index(c.Flags, "--dtype"); i >= 0 {
		o.DType = c.Flags[i+1]
	}
	plan, err := convert.Quantize(src, o)
	if err != nil {
		return false, err
	}
	_, err = convert.Run(context.Background(), plan, convert.RunOptions{Out: out, NoSync: true})
	return true, err
}

// TestValid holds the flawless twins: what is refused above is refused for its defect.
func TestValid(t *testing.T) {
	for _, c := range formatstest.Valid(t, t.TempDir()) {
		t.Run(c.Name, func(t *testing.T) {
			if len(c.Flags) == 0 {
				out := filepath.Join(t.TempDir(), "out")
				if _, err := open(c, out); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(filepath.Join(out, "model.safetensors")); err != nil {
					t.Fatal(err)
				}
				return
			}
			src, err := hf.Open(c.Path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := weights.Open(src); err != nil {
				t.Error(err)
			}
			if err := src.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
