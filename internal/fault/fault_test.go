package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestClassOf(t *testing.T) {
	dir := t.TempDir()
	_, missing := os.Open(filepath.Join(dir, "missing"))
	// An *os.LinkError: neither fs.ErrNotExist nor an *fs.PathError.
	rename := os.Rename(dir, filepath.Join(dir, "itself"))
	if rename == nil {
		t.Fatal("a directory was moved into itself")
	}
	for _, c := range []struct {
		name string
		err  error
		want Class
	}{
		{"usage", Usagef("--x"), Usage},
		{"gate", Gatef("x"), Gate},
		{"input", Inputf("x"), Input},
		{"io", IOf("x"), IO},
		{"with context", fmt.Errorf("reading %q: %w", "f", Inputf("x")), Input},
		{"hinted", WithHint(Inputf("x"), "y"), Input},
		{"the outermost counts", Inputf("a: %w", IOf("b")), Input},
		{"joined", errors.Join(errors.New("a"), Gatef("b")), Gate},
		{"a class above its cause", Inputf("a: %w", missing), Input},
		{"a class above a cancelled context", IOf("a: %w", context.Canceled), IO},
		{"cancelled", fmt.Errorf("a: %w", context.Canceled), Interrupted},
		{"cancelled while reading", errors.Join(missing, context.Canceled), Interrupted},
		{"open", missing, IO},
		{"rename", fmt.Errorf("a: %w", rename), IO},
		{"link", &os.LinkError{Op: "rename", Old: "a", New: "b", Err: syscall.EBUSY}, IO},
		{"errno", fmt.Errorf("a: %w", syscall.ENOSPC), IO},
		{"system call", os.NewSyscallError("fsync", syscall.EIO), IO},
		{"permission", fs.ErrPermission, IO},
		{"unknown", errors.New("x"), Internal},
	} {
		if got := ClassOf(c.err); got != c.want {
			t.Errorf("%s: class %d of %v, want %d", c.name, got, c.err, c.want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for class, want := range map[Class]int{Internal: 1, Usage: 2, Gate: 3, Input: 4, IO: 5, Interrupted: 130} {
		if got := class.ExitCode(); got != want {
			t.Errorf("class %d: exit code %d, want %d", class, got, want)
		}
	}
}

// The text is that of fmt.Errorf, and what %w wraps can be found.
func TestErrorsWrap(t *testing.T) {
	cause := errors.New("cause")
	for name, f := range map[string]func(string, ...any) error{"usage": Usagef, "gate": Gatef, "input": Inputf, "io": IOf} {
		err := WithHint(f("doing %d: %w", 7, cause), "a hint")
		if err.Error() != "doing 7: cause" {
			t.Errorf("%s: text %q", name, err)
		}
		if !errors.Is(err, cause) {
			t.Errorf("%s: the cause is lost", name)
		}
	}
}

func TestHints(t *testing.T) {
	if WithHint(nil, "x") != nil {
		t.Error("a hint made an error of nil")
	}
	inner := WithHint(Inputf("a"), "inner %d", 1)
	for _, c := range []struct {
		err  error
		want []string
	}{
		{nil, nil},
		{errors.New("x"), nil},
		{inner, []string{"inner 1"}},
		{WithHint(fmt.Errorf("b: %w", inner), "outer"), []string{"outer", "inner 1"}},
		{errors.Join(WithHint(errors.New("a"), "first"), fmt.Errorf("b: %w", inner)), []string{"first", "inner 1"}},
		{fmt.Errorf("%w and %w", inner, WithHint(IOf("c"), "second")), []string{"inner 1", "second"}},
	} {
		if got := Hints(c.err); !slices.Equal(got, c.want) {
			t.Errorf("hints of %v: %q, want %q", c.err, got, c.want)
		}
	}
}
