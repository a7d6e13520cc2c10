package term

import (
	"os"
	"path/filepath"
	"testing"
)

// What is no terminal has no width: output to it is for programs.
func TestWidthOfOtherThings(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{"a file": file, "a pipe to read": r, "a pipe to write": w, "the null device": null} {
		if got := Width(f); got != 0 {
			t.Errorf("%s is %d columns wide, want 0", name, got)
		}
		if err := f.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := Width(f); got != 0 {
			t.Errorf("%s, closed, is %d columns wide, want 0", name, got)
		}
	}
}
