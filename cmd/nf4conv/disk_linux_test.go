package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
)

// mounted runs a shell script in a mount namespace of its own, where $disk is a tmpfs of
// the given size and nf4conv the program. Without the right to make such a namespace the
// test is skipped, and says so.
func mounted(t *testing.T, disk string, size int64, script string) string {
	t.Helper()
	c := program(context.Background())
	c.Path = "/bin/sh"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "nf4conv")
	if err := os.Symlink(self, bin); err != nil {
		t.Fatal(err)
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("SKIPPED: no unshare(1) to mount a small disk with")
	}
	text := fmt.Sprintf("set -u; disk=%q; nf4conv=%q\nmount -t tmpfs -o size=%d tmpfs \"$disk\" || exit 99\n%s", disk, bin, size, script)
	c.Path, c.Args = unshare, []string{"unshare", "--map-root-user", "--mount", "sh", "-c", text}
	if os.Geteuid() == 0 {
		c.Args = []string{"unshare", "--mount", "sh", "-c", text}
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && (exit.ExitCode() == 99 || strings.Contains(out.String(), "unshare:")) {
		t.Skipf("SKIPPED: no small disk can be mounted here: %s", out.String())
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return out.String()
}

// A disk of every size from nothing to enough: exit code 5 and nothing under the final
// name, and once there is room the same command ends with the right bytes.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	src := fixtures.Synthetic(t, filepath.Join(dir, "source"), fixtures.Spec{Hidden: 256, Intermediate: 512, Vocab: 512, Layers: 3, Shards: 2, Seed: 4})
	want := filepath.Join(dir, "want")
	if r := nf4conv(t, "quantize", src, want, "-q", "--card", "--sha256"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	weights, err := os.Stat(filepath.Join(want, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o777); err != nil {
		t.Fatal(err)
	}
	// The plan refuses before it writes when the disk is too small; so the disk is filled
	// behind its back, by a file that takes all that is left at some moment of the run.
	script := fmt.Sprintf(`
for after in 0 0.002 0.004 0.006 0.008 0.010 0.012 0.014 0.016 0.020 0.030; do
	rm -rf "$disk"/*
	mount -o remount,size=$((%d + 1048576 + 65536)) "$disk"
	(sleep $after; head -c 4m /dev/zero >"$disk/ballast") 2>/dev/null &
	"$nf4conv" quantize %q "$disk/out" --card --sha256 -q; code=$?
	wait
	if [ $code != 0 ]; then
		[ $code = 5 ] || { echo "$after s: exit code $code"; exit 1; }
		[ ! -e "$disk/out" ] || { echo "$after s: half an output under the final name"; exit 1; }
		echo "full after $after s"
	fi
	rm -f "$disk/ballast"
	mount -o remount,size=64m "$disk"
	if [ $code != 0 ]; then "$nf4conv" quantize %[2]q "$disk/out" --card --sha256 -q || { echo "$after s: no resume"; exit 1; }; fi
	diff -r %[3]q "$disk/out" || exit 1
	[ "$(ls "$disk")" = out ] || { ls "$disk"; exit 1; }
done
# far too small: refused by the plan, nothing is written
for size in 4096 100000 $((%[1]d / 2)) $((%[1]d)); do
	rm -rf "$disk"/*
	mount -o remount,size=$size "$disk"
	message=$("$nf4conv" quantize %[2]q "$disk/out" -q 2>&1); code=$?
	[ $code = 5 ] || { echo "size $size: exit code $code: $message"; exit 1; }
	case $message in *"more, the disk has"*"hint: free "*) ;; *) echo "size $size: $message"; exit 1;; esac
	[ -z "$(ls "$disk")" ] || { ls "$disk"; exit 1; }
	echo "refused at $size"
done
`, weights.Size(), src, want)
	out := mounted(t, disk, weights.Size()+2<<20, script)
	if strings.Count(out, "refused at") != 4 || strings.Count(out, "full after") == 0 {
		t.Errorf("nothing was shown:\n%s", out)
	}
	t.Log(out)
}

// A directory that cannot be written to: exit code 5, the name in the message.
func TestReadOnlyOutput(t *testing.T) {
	dir := t.TempDir()
	src := fixtures.Synthetic(t, filepath.Join(dir, "source"), fixtures.Spec{})
	disk := filepath.Join(dir, "disk")
	if err := os.Mkdir(disk, 0o777); err != nil {
		t.Fatal(err)
	}
	out := mounted(t, disk, 64<<20, fmt.Sprintf(`
"$nf4conv" quantize %q "$disk/old" -q || exit 1
before=$(cd "$disk" && find . | sort | xargs ls -ld)
mount -o remount,ro "$disk" || exit 99
for out in new old; do
	"$nf4conv" quantize %[1]q "$disk/$out" --overwrite -q; echo "exit code $?"
done
[ "$before" = "$(cd "$disk" && find . | sort | xargs ls -ld)" ] || echo "something was written"
`, src))
	if strings.Count(out, "exit code 5") != 2 || strings.Count(out, "read-only") != 2 || !strings.Contains(out, disk) || strings.Contains(out, "something was written") {
		t.Error(out)
	}
}
