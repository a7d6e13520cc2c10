package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
)

// maxMalformedRSS bounds the memory that a malformed file can make the program take.
const maxMalformedRSS = 100 << 20

// memoryFactor is how much more memory this build takes than the program that people run.
var memoryFactor int64 = 1

// Every malformed checkpoint, through the program itself: exit code 4, one line that names
// the place, nothing written, little memory, no stack trace.
func TestMalformedInputs(t *testing.T) {
	cases := formatstest.Malformed(t, t.TempDir())
	if len(cases) < 60 {
		t.Errorf("%d cases, want 60 and more", len(cases))
	}
	var highest int64
	for _, c := range cases {
		dir := t.TempDir()
		out := filepath.Join(dir, "out")
		if strings.HasSuffix(c.Path, ".safetensors") {
			out += ".safetensors"
		}
		r := nf4conv(t, append([]string{"quantize", c.Path, out, "--progress", "none"}, c.Flags...)...)
		if r.code != 4 {
			t.Errorf("%s: exit code %d, want 4: %s", c.Name, r.code, r.stderr)
		}
		message := ""
		for line := range strings.Lines(r.stderr) {
			if strings.HasPrefix(line, "nf4conv: error: ") {
				message += line
			} else if !strings.HasPrefix(line, "nf4conv: ") && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: a line of another form: %q", c.Name, line)
			}
		}
		if strings.Count(message, "\n") != 1 {
			t.Errorf("%s: expected one error line, found %q", c.Name, r.stderr)
		}
		if missing := c.Missing(message); len(missing) > 0 {
			t.Errorf("%s: the message lacks %q: %s", c.Name, missing, message)
		}
		if r.stdout != "" || strings.Contains(r.stderr, "goroutine ") || strings.Contains(r.stderr, "panic") {
			t.Errorf("%s: printed %q and %q", c.Name, r.stdout, r.stderr)
		}
		highest = max(highest, r.peak)
		if r.peak > memoryFactor*maxMalformedRSS || (r.peak == 0 && runtime.GOOS == "linux") {
			t.Errorf("%s: took %d bytes of memory, expected at most %d", c.Name, r.peak, maxMalformedRSS)
		}
		checkLeft(t, &c, dir)
	}
	t.Logf("%d malformed checkpoints; peak memory %d bytes", len(cases), highest)
}

// checkLeft wants nothing written, also by a run that found a bad weight on its way: no
// command could continue it.
func checkLeft(t *testing.T, c *formatstest.Case, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("%s: %q was left behind", c.Name, e.Name())
	}
}
