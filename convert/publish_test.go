package convert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// An output directory is replaced as a whole: files of the old one do not survive in the
// new one, and without being asked nothing is replaced.
func TestOverwrite(t *testing.T) {
	src := small(t)
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	out := filepath.Join(t.TempDir(), "out")
	other := options(func(o *QuantizeOptions) { o.BlockSize, o.MaxShardSize = 128, 50_000 })
	mustRun(t, mustPlan(t, src, other), RunOptions{Out: out})
	old := readTree(t, out)
	_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
	if fault.ClassOf(err) != fault.Usage || !strings.Contains(strings.Join(fault.Hints(err), ""), "--overwrite") {
		t.Errorf("error %v, want class usage and a hint", err)
	}
	nothingBeside(t, out)
	if got := readTree(t, out); strings.Join(keys(got), " ") != strings.Join(keys(old), " ") {
		t.Errorf("a refused run changed the files: %q, before %q", keys(got), keys(old))
	}
	mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, Overwrite: true})
	sameTree(t, want, out)
	nothingBeside(t, out)
}

// A run that fails leaves what it was to replace as it was.
func TestOverwriteThatFails(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out})
	before := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(before, os.DirFS(out)); err != nil {
		t.Fatal(err)
	}
	w := &failingWrites{left: 60_000, err: errors.New("the disk is on fire")}
	o := options(func(o *QuantizeOptions) { o.DoubleQuant = false })
	if _, err := Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: out, Overwrite: true, NoSync: true, wrapWrites: w.wrap}); err == nil {
		t.Fatal("no error")
	}
	sameTree(t, before, out)
	mustRun(t, mustPlan(t, src, o), RunOptions{Out: out, Overwrite: true})
	sameTree(t, mustRun(t, mustPlan(t, src, o), RunOptions{}), out)
}

// The last steps, in every state in which a crash can leave them: the complete output
// takes its name at the next start, whatever that asks for.
func TestPublishAfterACrash(t *testing.T) {
	src := small(t)
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	oldOut := mustRun(t, mustPlan(t, src, options(func(o *QuantizeOptions) { o.BlockSize = 256 })), RunOptions{})
	for _, c := range []struct {
		name    string
		replace bool
		crash   func(t *testing.T, ps *paths) // what was done after the journal's last line
	}{
		{"nothing done", false, func(*testing.T, *paths) {}},
		{"renamed", false, func(t *testing.T, ps *paths) { rename(t, ps.partial, ps.out) }},
		{"nothing replaced yet", true, func(*testing.T, *paths) {}},
		{"exchanged", true, func(t *testing.T, ps *paths) {
			rename(t, ps.out, ps.out+"x")
			rename(t, ps.partial, ps.out)
			rename(t, ps.out+"x", ps.partial)
		}},
		{"exchanged, old half removed", true, func(t *testing.T, ps *paths) {
			rename(t, ps.out, ps.out+"x")
			rename(t, ps.partial, ps.out)
			rename(t, ps.out+"x", ps.partial)
			if err := os.Remove(filepath.Join(ps.partial, "config.json")); err != nil {
				t.Fatal(err)
			}
		}},
		{"exchanged, old removed", true, func(t *testing.T, ps *paths) {
			rename(t, ps.out, ps.out+"x")
			rename(t, ps.partial, ps.out)
			removeTree(t, ps.out+"x")
		}},
		{"old aside", true, func(t *testing.T, ps *paths) { rename(t, ps.out, ps.old) }},
		{"old aside, renamed", true, func(t *testing.T, ps *paths) {
			rename(t, ps.out, ps.old)
			rename(t, ps.partial, ps.out)
		}},
		{"old aside, renamed, old half removed", true, func(t *testing.T, ps *paths) {
			rename(t, ps.out, ps.old)
			rename(t, ps.partial, ps.out)
			if err := os.Remove(filepath.Join(ps.old, "config.json")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			ps := makePaths(out, "")
			if c.replace {
				if err := os.CopyFS(out, os.DirFS(oldOut)); err != nil {
					t.Fatal(err)
				}
			}
			completeButUnnamed(t, src, want, &ps)
			c.crash(t, &ps)
			res, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
			if err != nil {
				t.Fatal(err)
			}
			if !res.Already {
				t.Error("the work was done again")
			}
			sameTree(t, want, out)
			nothingBeside(t, out)
		})
	}
}

// completeButUnnamed puts the state on disk in which publish is called: partial holds
// everything, the journal's last line says so.
func completeButUnnamed(t *testing.T, src, want string, ps *paths) {
	t.Helper()
	p := mustPlan(t, src, DefaultQuantize())
	if err := os.CopyFS(ps.partial, os.DirFS(want)); err != nil {
		t.Fatal(err)
	}
	head, err := (&runner{plan: p}).head()
	if err != nil {
		t.Fatal(err)
	}
	j, err := createJournal(ps.journal, head)
	if err != nil {
		t.Fatal(err)
	}
	end := journalEnd{Complete: true}
	if end.Replaces, err = identify(ps.out); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.append(&end), j.close()); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func removeTree(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// What appears under the output's name while a run goes on is not replaced unasked.
func TestOutputAppearsDuringTheRun(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	p := mustPlan(t, src, DefaultQuantize())
	made := false
	_, err := Run(context.Background(), p, RunOptions{Out: out, NoSync: true, Engine: engineThat(func() {
		if !made {
			made = true
			if err := os.MkdirAll(out, 0o777); err != nil {
				t.Error(err)
			}
			if err := os.WriteFile(filepath.Join(out, "mine.txt"), []byte("keep me"), 0o666); err != nil {
				t.Error(err)
			}
		}
	})})
	if fault.ClassOf(err) != fault.Usage {
		t.Errorf("error %v, want class usage", err)
	}
	if b, err := os.ReadFile(filepath.Join(out, "mine.txt")); err != nil || string(b) != "keep me" {
		t.Errorf("the file is gone: %q, %v", b, err)
	}
}

// engineThat calls f whenever a job begins.
func engineThat(f func()) Engine { return hooked{f: f} }

type hooked struct {
	CPU
	f func()
}

func (h hooked) Begin(s JobSpec) (Transform, error) { h.f(); return h.CPU.Begin(s) }

// Outputs that would touch the source are refused before anything is made.
func TestOutputTouchesTheSource(t *testing.T) {
	dir := t.TempDir()
	src := fixtures.Synthetic(t, filepath.Join(dir, "source"), fixtures.Spec{})
	link := filepath.Join(dir, "link")
	if err := os.Symlink(src, link); err != nil {
		t.Skip("no symbolic links here:", err)
	}
	before := readTree(t, src)
	for name, out := range map[string]string{
		"itself": src, "through a link": link, "with dots": filepath.Join(src, "..", "source"),
		"inside": filepath.Join(src, "out"), "inside through a link": filepath.Join(link, "out"), "around": dir,
		"no such directory": filepath.Join(dir, "a", "b", "out"),
	} {
		for _, overwrite := range []bool{false, true} {
			_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, Overwrite: overwrite, NoSync: true})
			if fault.ClassOf(err) != fault.Usage {
				t.Errorf("%s, overwrite %v: error %v, want class usage", name, overwrite, err)
			}
		}
	}
	if after := readTree(t, src); strings.Join(keys(after), " ") != strings.Join(keys(before), " ") {
		t.Errorf("the source has other files now: %q", keys(after))
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("something was left behind: %v", left)
	}
}

// A single file becomes a single file, with the manifest beside it.
func TestSingleFile(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(fixtures.Synthetic(t, filepath.Join(dir, "source"), fixtures.Spec{}), "model.safetensors")
	out := filepath.Join(dir, "out.safetensors")
	o := options(func(o *QuantizeOptions) { o.FileName = filepath.Base(out) })
	mustRun(t, mustPlan(t, src, o), RunOptions{Out: out})
	for _, name := range []string{out, out + "." + ManifestName} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(out + ".partial"); err == nil {
		t.Error("the partial directory is left")
	}
	q := openSource(t, out)
	if !q.IsFile() || len(q.Tensors()) < 10 {
		t.Errorf("%d tensors", len(q.Tensors()))
	}
	_, err := Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: out, NoSync: true})
	if fault.ClassOf(err) != fault.Usage {
		t.Errorf("error %v, want class usage: the file exists", err)
	}
	_, err = Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: src, Overwrite: true, NoSync: true})
	if fault.ClassOf(err) != fault.Usage {
		t.Errorf("error %v, want class usage: the output is the source", err)
	}
	w := &failingWrites{left: 20_000, err: errors.New("the disk is on fire")}
	before, _ := os.ReadFile(out)
	if _, err = Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: out, Overwrite: true, NoSync: true, wrapWrites: w.wrap}); err == nil {
		t.Fatal("no error")
	}
	after, _ := os.ReadFile(out)
	if string(before) != string(after) {
		t.Error("a failed run changed the file")
	}
	mustRun(t, mustPlan(t, src, o), RunOptions{Out: out, Overwrite: true})
	if after, _ = os.ReadFile(out); string(before) != string(after) {
		t.Error("the same run again gives other bytes")
	}
}
