package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// What steers a terminal or cannot be seen is escaped; everything else stays.
func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"model.layers.0.q_proj": "model.layers.0.q_proj", "": "", "weiß, 重み": "weiß, 重み", `a\b "c"`: `a\b "c"`,
		"\x1b[31mred\x1b[0m": `\x1b[31mred\x1b[0m`, "a\nb\tc\rd\x00": `a\nb\tc\rd\x00`, "\u202egnp.exe": `\u202egnp.exe`,
		"bad \xff utf": `bad \xff utf`, "a\u00a0b\ufffd": "a\\u00a0b\ufffd", "\x7f\u0085": `\x7f\u0085`,
	} {
		if got := visible(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
		if visible(want) != want {
			t.Errorf("%q is escaped twice", want)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		label, text   string
		indent, width int
		want          string
	}{
		{"a: ", "one two three", 3, 0, "a: one two three\n"},
		{"a: ", "one two three", 3, 16, "a: one two three\n"},
		{"a: ", "one two three", 3, 15, "a: one two\n   three\n"},
		{"a: ", "one two three", 2, 7, "a: one\n  two\n  three\n"},
		{"  label    ", "averylongword x", 11, 20, "  label\n    averylongword x\n"},
		{"", "3.60 MiB of 18.4 k, 63 ms", 0, 9, "3.60 MiB\nof\n18.4 k,\n63 ms\n"},
		{"", "weiß weiß weiß", 0, 9, "weiß weiß\nweiß\n"},
	} {
		got := wrap(c.label, c.text, c.indent, c.width)
		if got != c.want {
			t.Errorf("%q %q in %d columns:\n%q, want\n%q", c.label, c.text, c.width, got, c.want)
		}
	}
	long := wrap("nf4conv: ", strings.Repeat("word ", 60)+"end", 2, 40)
	for line := range strings.Lines(long) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 40 || strings.HasSuffix(line, " \n") {
			t.Errorf("a line of %d columns: %q", n, line)
		}
	}
}

// Only a verb that writes keeps something that the same command continues.
func TestInterruptedHint(t *testing.T) {
	for _, writes := range []bool{false, true} {
		f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		a := &app{stdout: f, stderr: f, writes: writes}
		if code := a.exitCode(fmt.Errorf("reading: %w", context.Canceled)); code != fault.Interrupted.ExitCode() {
			t.Errorf("exit code %d", code)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(f.Name())
		if err != nil || strings.Contains(string(b), "the same command continues") != writes {
			t.Errorf("a verb that writes: %v, and it says %q (%v)", writes, b, err)
		}
	}
	for _, v := range verbs() {
		if want := v.name == "quantize" || v.name == "dequantize" || v.name == "merge"; v.writes != want {
			t.Errorf("%s: writes is %v", v.name, v.writes)
		}
	}
}
