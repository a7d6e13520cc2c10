// Package formatstest makes checkpoints with one defect each, to test that readers
// refuse them, and their flawless twins, to test that it is the defect they refuse.
//
// All are built in Go around one tiny Llama (a layer of width 32, BF16, some 40 KB):
// config.json and model.safetensors, whose header is put together as text so that it
// can say anything.
package formatstest

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Case is a checkpoint that must be refused as invalid input.
type Case struct {
	Name string
	Path string   // directory or file to be opened
	Want []string // all must stand in the message; the first is the name of the file at fault

	// Runtime cases are found only when weights are read: the plan succeeds, the run
	// does not, and leaves nothing.
	Runtime bool
	// Flags are those of `nf4conv quantize` without which nothing is wrong.
	Flags []string
}

// Missing returns what of Want an error message lacks. The path of the case, whose
// directories are named after the defect, counts for the first alone.
func (c *Case) Missing(message string) []string {
	rest := message
	for _, dir := range []string{c.Path, filepath.Dir(c.Path)} {
		rest = strings.ReplaceAll(rest, dir, "")
		rest = strings.ReplaceAll(rest, strings.Trim(strconv.Quote(dir), `"`), "") // Windows
	}
	var missing []string
	for i, want := range c.Want {
		if i > 0 && !strings.Contains(rest, want) || !strings.Contains(message, want) {
			missing = append(missing, want)
		}
	}
	return missing
}

// Malformed writes the malformed checkpoints under dir and returns them.
func Malformed(tb testing.TB, dir string) []Case {
	tb.Helper()
	b := &builder{tb: tb, dir: dir}
	b.truncations()
	b.headers()
	b.entries()
	b.configs()
	b.indexes()
	b.places()
	b.quantized()
	b.values()
	return b.cases
}

// Valid writes the checkpoints that the malformed ones were made from: every one must
// be accepted by weights.Open, and all but those whose Flags is ["-"] by a plan to quantize.
func Valid(tb testing.TB, dir string) []Case {
	tb.Helper()
	b := &builder{tb: tb, dir: dir}
	b.valid()
	return b.cases
}

// builder collects cases, each in a directory of its own.
type builder struct {
	tb    testing.TB
	dir   string
	cases []Case
}

// add makes the directory of a case and returns it.
func (b *builder) add(name string, want ...string) string {
	b.tb.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.tb.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		b.tb.Fatal(err) // two cases of one name, too
	}
	b.cases = append(b.cases, Case{Name: name, Path: path, Want: want})
	return path
}

// last is the case that was added last.
func (b *builder) last() *Case { return &b.cases[len(b.cases)-1] }

// write writes a file of a case.
func (b *builder) write(dir, name string, content []byte) {
	b.tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
		b.tb.Fatal(err)
	}
}

// link makes a symbolic link, or returns false where the system does not let everybody.
func (b *builder) link(target, dir, name string) bool {
	b.tb.Helper()
	if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
		if runtime.GOOS == "windows" {
			b.tb.Logf("leaving out %q: %v", filepath.Base(dir), err)
			b.cases = b.cases[:len(b.cases)-1]
			return false
		}
		b.tb.Fatal(err)
	}
	return true
}
