package cudatest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// recorder takes the verdict of a helper in place of the running test.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()           {}
func (r *recorder) Skip(args ...any)  { r.skipped = fmt.Sprint(args...); panic(r) }
func (r *recorder) Fatal(args ...any) { r.failed = fmt.Sprint(args...); panic(r) }
func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	panic(r)
}
func (r *recorder) run(f func(testing.TB)) {
	defer func() {
		if p := recover(); p != nil && p != any(r) {
			panic(p)
		}
	}()
	f(r)
}

func TestNotRun(t *testing.T) {
	for _, c := range []struct {
		require      string
		skips, fails bool
	}{{"", true, false}, {"cuda", true, false}, {"avx2,emulator", false, true}} {
		t.Setenv("NF4CONV_TEST_REQUIRE", c.require)
		r := &recorder{TB: t}
		r.run(func(tb testing.TB) { NotRun(tb, "emulator", "no %s", "reason") })
		if (r.skipped != "") != c.skips || (r.failed != "") != c.fails || !strings.Contains(r.skipped+r.failed, "NOT RUN (emulator): no reason") {
			t.Errorf("NF4CONV_TEST_REQUIRE=%q: skipped %q, failed %q", c.require, r.skipped, r.failed)
		}
	}
}

func TestLibraryWithoutCompiler(t *testing.T) {
	t.Setenv("CC", filepath.Join(t.TempDir(), "cc"))
	t.Setenv("NF4CONV_TEST_REQUIRE", "")
	r := &recorder{TB: t}
	r.run(func(tb testing.TB) { Library(tb, "-DNF4CONV_NO_COMPILER") })
	if !strings.Contains(r.skipped, "NOT RUN") || !strings.Contains(r.skipped, "compiler") {
		t.Errorf("skipped %q, failed %q", r.skipped, r.failed)
	}
}

// Several processes, here goroutines, may want the library at once.
func TestBuildsAtOnce(t *testing.T) {
	want := Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	paths := make([]string, 3)
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() {
			p, err := build(nil)
			if err != nil {
				t.Error(err)
			}
			paths[i] = p
		})
	}
	wg.Wait()
	for _, p := range paths {
		if p != paths[0] || filepath.Base(p) != filepath.Base(want) {
			t.Errorf("libraries %q, want one with the name of %q", paths, want)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(paths[0]))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want the library and nothing else", entries, err)
	}
}

// Every Open has a library of its own, and settings do not reach from one to the next.
func TestOpenIsPrivate(t *testing.T) {
	a := Open(t, "FAKECUDA_DEVICES=3", "FAKECUDA_CC=8.6", "FAKECUDA_MEMORY=1000000")
	b := Open(t)
	if n, m := len(a.Devices()), len(b.Devices()); n != 3 || m != 1 {
		t.Errorf("%d and %d devices, want 3 and 1", n, m)
	}
	if i := a.Devices()[2]; i.ComputeCapability() != 86 || i.TotalMemory != 1000000 || i.Name != "Fake GPU 2" {
		t.Errorf("%+v", i)
	}
	d, err := a.OpenDevice(0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Alloc(1)
	if err != nil {
		t.Fatal(err)
	}
	if n, m := a.Count("memory"), b.Count("memory"); n != 1 || m != 0 {
		t.Errorf("%d and %d allocations, want 1 and 0", n, m)
	}
	if err := d.Free(p); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestSettings(t *testing.T) {
	t.Setenv("FAKECUDA_CC", "1.0")
	env := strings.Join(Env(t, "FAKECUDA_DEVICES=2"), "\n") + "\n"
	if strings.Contains(env, "FAKECUDA_CC") || !strings.Contains(env, "\nFAKECUDA_DEVICES=2\n") || !strings.Contains(env, "\nNF4CONV_CUDA_LIBRARY=") {
		t.Error(env)
	}
	for _, bad := range []string{"FAKECUDA_DEVICE=2", "DEVICES=2", "FAKECUDA_DEVICES"} {
		r := &recorder{TB: t}
		r.run(func(tb testing.TB) { Env(tb, bad) })
		if !strings.Contains(r.failed, bad) {
			t.Errorf("%q is a setting", bad)
		}
	}
}
