package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// failingWrites lets a number of bytes through, as a disk does that fills up: the write
// that crosses the limit is short.
type failingWrites struct {
	mu   sync.Mutex
	left int64
	err  error
}

func (f *failingWrites) wrap(w io.WriterAt) io.WriterAt { return limited{f, w} }

type limited struct {
	f *failingWrites
	w io.WriterAt
}

func (l limited) WriteAt(p []byte, off int64) (int, error) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if int64(len(p)) <= l.f.left {
		l.f.left -= int64(len(p))
		return l.w.WriteAt(p, off)
	}
	n, err := l.w.WriteAt(p[:l.f.left], off)
	l.f.left = 0
	return n, errors.Join(err, l.f.err)
}

// A disk that fills up at any point: a clear error, nothing under the final name, and
// the same plan continues to the bytes of an uninterrupted run.
func TestFullDiskAndResume(t *testing.T) {
	src := small(t)
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	weights, err := os.Stat(filepath.Join(want, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	resumed := 0
	for i := range 40 {
		out := filepath.Join(t.TempDir(), "out")
		w := &failingWrites{left: r.Int64N(weights.Size()), err: syscall.ENOSPC}
		o := DefaultQuantize()
		o.Threads = 1 + i%3
		_, err := Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: out, NoSync: true, wrapWrites: w.wrap})
		if fault.ClassOf(err) != fault.IO || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("error %v, want a full disk of class IO", err)
		}
		if !strings.Contains(err.Error(), ".safetensors") || len(fault.Hints(err)) == 0 {
			t.Errorf("the message names no file or gives no hint: %v", err)
		}
		if _, err := os.Lstat(out); err == nil {
			t.Fatal("something stands under the final name")
		}
		res, err := Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: out, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		resumed += res.Resumed
		sameTree(t, want, out)
		nothingBeside(t, out)
	}
	if resumed == 0 {
		t.Error("no run continued another: nothing was shown")
	}
}

// An interrupt at any point keeps what is done.
func TestCancelAndResume(t *testing.T) {
	src := small(t)
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	for n := range 12 {
		out := filepath.Join(t.TempDir(), "out")
		ctx, cancel := context.WithCancel(context.Background())
		writes := 0
		var mu sync.Mutex
		stop := func(w io.WriterAt) io.WriterAt {
			mu.Lock()
			defer mu.Unlock()
			if writes++; writes > 5*n {
				cancel()
			}
			return w
		}
		_, err := Run(ctx, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true, wrapWrites: stop})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want a cancelled context", err)
		}
		if _, err := os.Lstat(out); err == nil {
			t.Fatal("something stands under the final name")
		}
		mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out})
		sameTree(t, want, out)
		nothingBeside(t, out)
	}
}

// interrupted leaves a run of src at out half done.
func interrupted(t *testing.T, src, out string, o QuantizeOptions) {
	t.Helper()
	w := &failingWrites{left: 60_000, err: syscall.ENOSPC}
	if _, err := Run(context.Background(), mustPlan(t, src, o), RunOptions{Out: out, NoSync: true, wrapWrites: w.wrap}); err == nil {
		t.Fatal("the run was not interrupted")
	}
	if b, err := os.ReadFile(out + ".partial.journal"); err != nil || bytes.Count(b, []byte("\n")) < 3 {
		t.Fatalf("the journal has no records to speak of: %v\n%s", err, b)
	}
}

// What an interrupted run wrote with other run options is not in the output of the one
// that continues it.
func TestLeftoversOfOtherOptions(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	interrupted(t, src, out, DefaultQuantize())
	for _, name := range []string{"README.md", "SHA256SUMS", "model-00001-of-00002.safetensors"} {
		if err := os.WriteFile(filepath.Join(out+".partial", name), []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out})
	sameTree(t, want, out)
}

// A card that an interrupted run wrote is not taken for one of the source.
func TestCardIsWrittenOnce(t *testing.T) {
	src := small(t)
	for _, carried := range []bool{false, true} {
		if carried {
			if err := os.WriteFile(filepath.Join(src, "README.md"), []byte("---\nlicense: mit\n---\n# Model\n"), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(t.TempDir(), "out")
		interrupted(t, src, out, DefaultQuantize())
		card, err := os.ReadFile(filepath.Join(mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Card: true}), "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(out+".partial", "README.md"), card, 0o666); err != nil {
			t.Fatal(err)
		}
		mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, Card: true})
		again, err := os.ReadFile(filepath.Join(out, "README.md"))
		if err != nil || !bytes.Equal(card, again) {
			t.Errorf("carried %v: the card is\n%s\n%v, want\n%s", carried, again, err, card)
		}
	}
}

// A journal may be cut or damaged anywhere, as by a crash of the machine: what it then
// says is less, and never wrong.
func TestDamagedJournal(t *testing.T) {
	src := small(t)
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	r := rand.New(rand.NewPCG(2, 2))
	for i := range 40 {
		out := filepath.Join(t.TempDir(), "out")
		interrupted(t, src, out, DefaultQuantize())
		path := out + ".partial.journal"
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := r.IntN(len(b))
		switch i % 4 {
		case 0:
			b = b[:at]
		case 1:
			b[at] ^= 1 << r.IntN(8)
		case 2: // a block that never reached the disk
			clear(b[at:min(len(b), at+512)])
		case 3:
			b = append(b, b[at:]...)
		}
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out})
		sameTree(t, want, out)
	}
}

// A run that continues over a torn line and is interrupted itself loses nothing of what
// it did.
func TestInterruptedTwice(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	interrupted(t, src, out, DefaultQuantize())
	f, err := os.OpenFile(out+".partial.journal", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`0000abcd {"job":3,"na`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p := mustPlan(t, src, DefaultQuantize())
	w := &failingWrites{left: 60_000, err: syscall.ENOSPC}
	var second Progress
	if _, err := Run(context.Background(), p, RunOptions{Out: out, NoSync: true, Progress: &second, wrapWrites: w.wrap}); err == nil {
		t.Fatal("the run was not interrupted")
	}
	res, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if done := second.Tensors.Load(); int64(res.Resumed) < done {
		t.Errorf("%d tensors were done when the second run stopped, the third found %d", done, res.Resumed)
	}
	sameTree(t, mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{}), out)
}

// What the journal says is written may not be there: the machine lost power before the
// data reached the disk. It is found by its digest and converted again.
func TestDamagedPartialOutput(t *testing.T) {
	src := small(t)
	want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
	for i := range 10 {
		out := filepath.Join(t.TempDir(), "out")
		interrupted(t, src, out, DefaultQuantize())
		file := filepath.Join(out+".partial", "model.safetensors")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			err = os.Remove(file)
		} else {
			for k := i; k < len(b); k += 4096 {
				b[k] = 0
			}
			err = os.WriteFile(file, b[:len(b)-i*100], 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
		mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out})
		sameTree(t, want, out)
	}
}

// An interrupted run is only continued by the same one.
func TestChangedSinceInterrupted(t *testing.T) {
	type fixture struct{ src, out string }
	edit := func(path string, change func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o666); err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Second)
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	first := func(f fixture) string { return filepath.Join(f.src, "model-00001-of-00003.safetensors") }
	for _, c := range []struct {
		name   string
		change func(fixture) QuantizeOptions
		want   []string
	}{
		{"options", func(fixture) QuantizeOptions { return options(func(o *QuantizeOptions) { o.BlockSize = 128 }) }, []string{": block_size 64 -> 128"}},
		{"a weight", func(f fixture) QuantizeOptions {
			edit(first(f), func(b []byte) []byte { b[len(b)-1] ^= 1; return b }) // in a tensor that is done or not: see below
			edit(first(f), func(b []byte) []byte { b[2048] ^= 1; return b })
			return DefaultQuantize()
		}, []string{"tensor", "has changed", "BLAKE3", "model-00001-of-00003.safetensors"}},
		{"a header", func(f fixture) QuantizeOptions {
			edit(first(f), func(b []byte) []byte { return bytes.Replace(b, []byte(`"__metadata__"`), []byte(`"__metadata_x"`), 1) })
			edit(first(f), func(b []byte) []byte { return bytes.Replace(b, []byte(`_x"`), []byte(`__"`), 1) })
			edit(filepath.Join(f.src, "config.json"), func(b []byte) []byte { return bytes.Replace(b, []byte("{"), []byte(`{"x":1,`), 1) })
			return DefaultQuantize()
		}, []string{"the interrupted run was another one"}},
		{"a side file", func(f fixture) QuantizeOptions {
			if err := os.WriteFile(filepath.Join(f.src, "tokenizer_config.json"), []byte("{}"), 0o666); err != nil {
				t.Fatal(err)
			}
			return DefaultQuantize()
		}, []string{"side files"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := fixture{small(t), filepath.Join(t.TempDir(), "out")}
			interrupted(t, f.src, f.out, DefaultQuantize())
			before := readTree(t, f.out+".partial")
			o := c.change(f)
			_, err := Run(context.Background(), mustPlan(t, f.src, o), RunOptions{Out: f.out, NoSync: true})
			if fault.ClassOf(err) != fault.Input {
				t.Fatalf("error %v, want one of class input", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the message lacks %q: %v", want, err)
				}
			}
			if hint := strings.Join(fault.Hints(err), " "); !strings.Contains(hint, "--restart") {
				t.Errorf("the hint %q does not name --restart", hint)
			}
			for name, b := range readTree(t, f.out+".partial") {
				if !bytes.Equal(b, before[name]) {
					t.Errorf("%s was written to", name)
				}
			}
			mustRun(t, mustPlan(t, f.src, o), RunOptions{Out: f.out, Restart: true})
			sameTree(t, mustRun(t, mustPlan(t, f.src, o), RunOptions{}), f.out)
			nothingBeside(t, f.out)
		})
	}
}

// Source files that were touched and not changed do not stop a resume.
func TestTouchedSource(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	interrupted(t, src, out, DefaultQuantize())
	later := time.Now().Add(time.Hour)
	for i := 1; i <= 3; i++ {
		if err := os.Chtimes(filepath.Join(src, fmt.Sprintf("model-%05d-of-00003.safetensors", i)), later, later); err != nil {
			t.Fatal(err)
		}
	}
	res, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if res.Resumed == 0 {
		t.Error("everything was done again")
	}
}

// A source that is written to while it is read must not become an output of two halves.
func TestSourceChangesDuringTheRun(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	p := mustPlan(t, src, DefaultQuantize())
	var once sync.Once
	touch := func(w io.WriterAt) io.WriterAt {
		once.Do(func() {
			path := filepath.Join(src, "model-00003-of-00003.safetensors")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			b[len(b)-1] ^= 1
			if err := os.WriteFile(path, b, 0o666); err != nil {
				t.Error(err)
			}
		})
		return w
	}
	_, err := Run(context.Background(), p, RunOptions{Out: out, NoSync: true, wrapWrites: touch})
	if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "model-00003-of-00003.safetensors") {
		t.Errorf("error %v, want class input and the file's name", err)
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("something stands under the final name")
	}
	nothingBeside(t, out)
}

// Two processes on one output: the second is refused while the first runs.
func TestOneRunPerOutput(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	var once sync.Once
	second := func(w io.WriterAt) io.WriterAt {
		once.Do(func() {
			_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true})
			if fault.ClassOf(err) != fault.IO || !strings.HasPrefix(err.Error(), "another nf4conv is writing") {
				t.Errorf("error %v, want class IO and the other process", err)
			}
		})
		return w
	}
	if _, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true, wrapWrites: second}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{}), out)
}

// A partial directory of unknown origin is not touched.
func TestPartialWithoutJournal(t *testing.T) {
	src, out := small(t), filepath.Join(t.TempDir(), "out")
	if err := os.MkdirAll(out+".partial", 0o777); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(out+".partial", "mine.txt")
	if err := os.WriteFile(mine, []byte("keep me"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, restart := range []bool{false, true} {
		_, err := Run(context.Background(), mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out, NoSync: true, Restart: restart})
		if fault.ClassOf(err) != fault.Input {
			t.Errorf("error %v, want class input", err)
		}
	}
	if b, err := os.ReadFile(mine); err != nil || string(b) != "keep me" {
		t.Errorf("the file is gone: %q, %v", b, err)
	}
}

// Resuming a plan with all kinds of jobs: transposed, cast, copied.
func TestResumeOfEveryFixture(t *testing.T) {
	for _, src := range fixtures.Models(t) {
		if testing.Short() && !strings.Contains(src, "gpt2") {
			continue
		}
		want := mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{})
		out := filepath.Join(t.TempDir(), "out")
		w := &failingWrites{left: 1 << 18, err: syscall.EIO}
		p := mustPlan(t, src, DefaultQuantize())
		w.left = p.Totals.BytesOut / 2
		if _, err := Run(context.Background(), p, RunOptions{Out: out, NoSync: true, wrapWrites: w.wrap}); fault.ClassOf(err) != fault.IO {
			t.Fatalf("%s: error %v, want class IO", src, err)
		}
		mustRun(t, mustPlan(t, src, DefaultQuantize()), RunOptions{Out: out})
		sameTree(t, want, out)
	}
}
