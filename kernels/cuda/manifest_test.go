package cuda

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestManifest holds sources and images to MANIFEST: a kernel that was changed must be
// built before it lands.
func TestManifest(t *testing.T) {
	raw, err := os.ReadFile("MANIFEST")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string][]string{} // kind: files
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "source" && f[0] != "image" {
			continue
		}
		listed[f[0]] = append(listed[f[0]], f[2])
		content, err := os.ReadFile(f[2])
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != f[1] {
			t.Errorf("%s has the hash %s, MANIFEST says %s: run kernels/cuda/build.sh", f[2], got, f[1])
		}
	}
	for kind, patterns := range map[string][]string{"source": {"src/*", "build.sh", "toolchain.sh", "_pack/main.go"}, "image": {"bin/*"}} {
		var files []string
		for _, p := range patterns {
			m, err := filepath.Glob(p)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range m {
				files = append(files, filepath.ToSlash(f))
			}
		}
		slices.Sort(files)
		slices.Sort(listed[kind])
		if !slices.Equal(files, listed[kind]) {
			t.Errorf("%s files are %q, MANIFEST lists %q", kind, files, listed[kind])
		}
	}
}
