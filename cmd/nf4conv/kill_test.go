package main

import (
	"bytes"
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nf4conv/nf4conv/fixtures"
)

// kills is how often a run is killed.
const kills = 50

// sameFiles tells whether two directories hold the same files with the same bytes, and
// names one that differs.
func sameFiles(tb testing.TB, a, b string) (differs string, same bool) {
	tb.Helper()
	read := func(dir string) map[string][]byte {
		files := map[string][]byte{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files[filepath.Base(path)], err = os.ReadFile(path)
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
		return files
	}
	x, y := read(a), read(b)
	for name := range y {
		if _, ok := x[name]; !ok {
			return name, false
		}
	}
	for name, content := range x {
		if !bytes.Equal(content, y[name]) {
			return name, false
		}
	}
	return "", true
}

// SIGKILL at random moments of a run, over and over: under the final name there is
// nothing, or the whole; and the same command continues to the bytes of a run that was
// left alone. Every other output replaces an older one: then there is the old or the new.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	src := fixtures.Synthetic(t, at("source"), fixtures.Spec{Hidden: 512, Intermediate: 1536, Vocab: 2048, Layers: 6, Shards: 3, Seed: 1})
	args := func(out string) []string {
		return []string{"quantize", src, out, "--overwrite", "--max-shard-size", "3MB", "--card", "--sha256", "--threads", "2", "-q"}
	}
	run := func(args []string) time.Duration {
		start := time.Now()
		if r := nf4conv(t, args...); r.code != 0 {
			t.Fatalf("%q: %s", args, r.stderr)
		}
		return time.Since(start)
	}
	run([]string{"quantize", src, at("old"), "--block-size", "4096", "-q"})
	whole := run(args(at("want")))
	r := rand.New(rand.NewPCG(9, 9))
	killed, finished, resumed, out := 0, 0, 0, ""
	for killed < kills {
		replaces := finished%2 == 1
		if out == "" {
			out = at("out")
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			if replaces {
				if err := os.CopyFS(out, os.DirFS(at("old"))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := os.Stat(out + ".partial.journal"); err == nil {
			resumed++
		}
		ctx, kill := context.WithCancel(context.Background())
		c := program(ctx, args(out)...)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		within := whole * 5 / 4
		if killed%2 == 1 {
			within = whole / 4
		}
		go func(anyTime bool, wait time.Duration) {
			// Every other kill comes once there is something to lose, however long a loaded machine
			// takes until then.
			for !anyTime && ctx.Err() == nil {
				if _, err := os.Stat(out + ".partial.journal"); err == nil {
					break
				}
				select {
				case <-ended:
				case <-time.After(time.Millisecond):
					continue
				}
				break
			}
			select {
			case <-ended:
			case <-time.After(wait):
			}
			kill()
		}(killed%2 == 0, time.Duration(r.Int64N(int64(within))))
		err := c.Wait()
		close(ended)
		if ctx.Err() != nil && err != nil {
			killed++
		}
		kill()
		_, lerr := os.Lstat(out)
		switch {
		case err == nil: // it was done before it was killed
			if name, same := sameFiles(t, at("want"), out); !same {
				t.Fatalf("after %d kills %s differs", killed, name)
			}
			finished, out = finished+1, ""
		case lerr == nil:
			_, isOld := sameFiles(t, at("old"), out)
			_, isNew := sameFiles(t, at("want"), out)
			if !isNew && (!isOld || !replaces) {
				t.Fatalf("after %d kills there is neither the old nor the new under the final name", killed)
			}
		}
	}
	if out != "" {
		run(args(out))
		if name, same := sameFiles(t, at("want"), out); !same {
			t.Fatalf("after the last kill %s differs", name)
		}
	}
	if resumed < kills/4 {
		t.Errorf("of %d runs %d found an interrupted one: nothing was shown", kills, resumed)
	}
	t.Logf("%d kills, %d runs continued another, %d outputs finished; a run left alone takes %v", killed, resumed, finished, whole)
}
