package convert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// Check refuses what Run refuses, in the same words and before anything is shown or
// written, and lets pass what Run takes up.
func TestCheckSaysWhatRunSays(t *testing.T) {
	src := small(t)
	model := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	write := func(t *testing.T, path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o777), os.WriteFile(path, []byte("mine"), 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(t *testing.T, to, name string) {
		t.Helper()
		if err := os.Symlink(to, name); err != nil {
			t.Skip("no symbolic links here:", err)
		}
	}
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, out string)
		run   RunOptions
		class fault.Class // Internal: not refused
		want  string
	}{
		{"free", func(*testing.T, string) {}, RunOptions{}, fault.Internal, ""},
		{"an empty directory", func(t *testing.T, out string) {
			if err := os.Mkdir(out, 0o777); err != nil {
				t.Fatal(err)
			}
		}, RunOptions{}, fault.Internal, ""},
		{"a model", func(t *testing.T, out string) {
			if err := os.CopyFS(out, os.DirFS(model)); err != nil {
				t.Fatal(err)
			}
		}, RunOptions{}, fault.Usage, "exists already"},
		{"a model to be replaced", func(t *testing.T, out string) {
			if err := os.CopyFS(out, os.DirFS(model)); err != nil {
				t.Fatal(err)
			}
		}, RunOptions{Overwrite: true}, fault.Internal, ""},
		{"something else", func(t *testing.T, out string) { write(t, filepath.Join(out, "mine.txt")) }, RunOptions{Overwrite: true}, fault.Usage, "nothing in it looks like a model"},
		{"a file", write, RunOptions{Overwrite: true}, fault.Usage, "is a file"},
		{"a link", func(t *testing.T, out string) { link(t, model, out) }, RunOptions{}, fault.Usage, "symbolic link"},
		{"a link to be replaced", func(t *testing.T, out string) { link(t, model, out) }, RunOptions{Overwrite: true}, fault.Usage, "symbolic link"},
		{"a link to nothing", func(t *testing.T, out string) { link(t, "nowhere", out) }, RunOptions{Overwrite: true}, fault.Usage, "symbolic link"},
		{"a strange partial output", func(t *testing.T, out string) { write(t, filepath.Join(out+".partial", "mine.txt")) }, RunOptions{}, fault.Input, "has no journal"},
		{"another run", func(t *testing.T, out string) {
			interrupted(t, src, out, options(func(o *QuantizeOptions) { o.BlockSize, o.Skip = 128, []string{"*.q_proj"} }))
		}, RunOptions{}, fault.Input, `another one: block_size 128 -> 64; skip ["*.q_proj"] -> none`},
		{"another run, thrown away", func(t *testing.T, out string) {
			interrupted(t, src, out, options(func(o *QuantizeOptions) { o.BlockSize = 128 }))
		}, RunOptions{Restart: true}, fault.Internal, ""},
		{"the same run", func(t *testing.T, out string) { interrupted(t, src, out, DefaultQuantize()) }, RunOptions{}, fault.Internal, ""},
		{"a torn journal", func(t *testing.T, out string) {
			interrupted(t, src, out, DefaultQuantize())
			if err := os.Truncate(out+".partial.journal", 40); err != nil {
				t.Fatal(err)
			}
		}, RunOptions{}, fault.Internal, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := c.run
			o.Out, o.NoSync = filepath.Join(t.TempDir(), "out"), true
			c.setup(t, o.Out)
			before := readTree(t, filepath.Dir(o.Out))
			p := mustPlan(t, src, DefaultQuantize())
			err := Check(p, o)
			sameContents(t, before, readTree(t, filepath.Dir(o.Out)))
			_, runErr := Run(context.Background(), p, o)
			if c.class == fault.Internal {
				if err != nil || runErr != nil {
					t.Errorf("refused: Check %v, Run %v", err, runErr)
				}
				return
			}
			if err == nil || runErr == nil || err.Error() != runErr.Error() || fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check: %v\nRun:   %v\nwant both to be of class %d with %q", err, runErr, c.class, c.want)
			}
			sameContents(t, before, readTree(t, filepath.Dir(o.Out)))
		})
	}
}

func sameContents(t *testing.T, want, got map[string][]byte) {
	t.Helper()
	if strings.Join(keys(got), "\n") != strings.Join(keys(want), "\n") {
		t.Errorf("the files are %q, were %q", keys(got), keys(want))
	}
	for name := range want {
		if string(got[name]) != string(want[name]) {
			t.Errorf("%s was written to", name)
		}
	}
}

// Names that say only where something is are refused before anything is made.
func TestOutputWithoutAName(t *testing.T) {
	src, dir := small(t), t.TempDir()
	t.Chdir(dir)
	for _, out := range []string{"", ".", "./", "..", "x/..", dir + "/.", "/"} {
		for _, overwrite := range []bool{false, true} {
			_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, Overwrite: overwrite, NoSync: true})
			if fault.ClassOf(err) != fault.Usage || len(fault.Hints(err)) == 0 || strings.Contains(err.Error(), ".partial") {
				t.Errorf("%q: error %v, want class usage and a hint", out, err)
			}
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Weights that cannot be converted leave nothing, not even what an earlier, interrupted
// run of the same command had done: only another source can succeed.
func TestNothingIsKeptOfInvalidInput(t *testing.T) {
	for _, resumed := range []bool{false, true} {
		src := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "s"), fixtures.Spec{Hidden: 64, Intermediate: 192, Vocab: 160, Seed: 7})
		poke(t, src, "model.norm.weight", 1, 0x7fc0)
		out := filepath.Join(t.TempDir(), "out")
		if resumed {
			w := &failingWrites{left: 60_000, err: syscall.ENOSPC}
			if _, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true, wrapWrites: w.wrap}); fault.ClassOf(err) != fault.IO {
				t.Fatalf("error %v, want a full disk", err)
			}
		}
		_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
		if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "NaN") {
			t.Errorf("error %v, want a NaN of class input", err)
		}
		nothingBeside(t, out)
		if _, err := os.Lstat(out); err == nil {
			t.Error("something stands under the final name")
		}
	}
}

// A file of a checkpoint is not the checkpoint: the plan says so, and nothing is written
// among the other files, where it would be taken for a part of it.
func TestFileOfACheckpoint(t *testing.T) {
	dir := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "source"), fixtures.Spec{})
	before := readTree(t, dir)
	p := mustPlan(t, filepath.Join(dir, "model.safetensors"), options(func(o *QuantizeOptions) { o.FileName = "q.safetensors" }))
	if w := strings.Join(p.Warnings, "\n"); !strings.Contains(w, "give the directory") {
		t.Errorf("no warning about the directory: %q", w)
	}
	_, err := Run(context.Background(), p, RunOptions{Out: filepath.Join(dir, "q.safetensors"), NoSync: true})
	if fault.ClassOf(err) != fault.Usage || !strings.Contains(err.Error(), "inside the checkpoint directory") {
		t.Errorf("error %v, want class usage", err)
	}
	sameContents(t, before, readTree(t, dir))
	// A file that stands alone has nothing beside it to be confused with.
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	p = mustPlan(t, filepath.Join(dir, "model.safetensors"), options(func(o *QuantizeOptions) { o.FileName = "q.safetensors" }))
	mustRun(t, p, RunOptions{Out: filepath.Join(dir, "q.safetensors")})
}

// The plan names what is not carried, and warns of what looks like a part of the model
// and is none; neither makes it another plan.
func TestPlanNamesWhatIsLeft(t *testing.T) {
	src := small(t)
	digest := func(p *Plan) string {
		d, err := p.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	before := digest(mustPlan(t, src, DefaultQuantize()))
	for _, name := range []string{"pytorch_model.bin", "original/x", ".gitattributes"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o777), os.WriteFile(filepath.Join(src, name), nil, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	makeFIFO(t, filepath.Join(src, "tokenizer.json"))
	p := mustPlan(t, src, DefaultQuantize())
	got := map[string]string{}
	for _, l := range p.Left {
		got[l.Name] = l.Why
	}
	for _, name := range []string{"pytorch_model.bin", "original/", ".gitattributes", "tokenizer.json"} {
		if got[name] == "" {
			t.Errorf("%s is not named with a reason: %q", name, p.Left)
		}
	}
	if w := strings.Join(p.Warnings, "\n"); strings.Count(w, "not carried") != 1 || !strings.Contains(w, `"tokenizer.json" is not carried: not a regular file`) {
		t.Errorf("the warnings are %q", w)
	}
	if digest(p) != before {
		t.Error("what is left behind made another plan")
	}
}

// When --skip leaves nothing, the command is wrong and not the model.
func TestSkipLeavesNothing(t *testing.T) {
	_, err := Quantize(openSource(t, small(t)), options(func(o *QuantizeOptions) { o.Skip = []string{"*"} }))
	if fault.ClassOf(err) != fault.Usage || !strings.Contains(err.Error(), `--skip ["*"] leaves nothing to quantize`) {
		t.Errorf("error %v, want one of class usage", err)
	}
}

// The least memory is named in units and as a number that is accepted.
func TestLeastMemory(t *testing.T) {
	src := small(t)
	with := func(n int64) (*Plan, error) {
		return Quantize(openSource(t, src), options(func(o *QuantizeOptions) { o.Memory = n }))
	}
	least := mustPlan(t, src, DefaultQuantize()).Schedule.Least
	if _, err := with(least); err != nil {
		t.Error(err)
	}
	_, err := with(least - 1)
	if err == nil || !strings.Contains(err.Error(), "KiB is too little") || len(fault.Hints(err)) != 1 || strings.Count(fault.Hints(err)[0], "KiB") != 2 {
		t.Errorf("error %v, hints %q; want sizes with units", err, fault.Hints(err))
	}
}
