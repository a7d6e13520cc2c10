//go:build unix

package convert

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// A directory that may not be written to is found before the plan is shown.
func TestCheckOfPermission(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	if unix.Access(dir, unix.W_OK) == nil {
		t.Skip("NOT TESTED: this user may write everywhere")
	}
	err := Check(mustPlan(t, small(t), DefaultQuantize()), RunOptions{Out: filepath.Join(dir, "out")})
	if fault.ClassOf(err) != fault.IO || !errors.Is(err, fs.ErrPermission) || len(fault.Hints(err)) == 0 {
		t.Errorf("error %v, want a permission of class IO with a hint", err)
	}
}
