package nf4conv

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPackageDocs demands exactly one package comment of every package: it is where
// the maths, the layout and the units are said, and two of them drift apart.
func TestPackageDocs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.files) == 0 {
			continue // tests only
		}
		var docs []string
		for _, path := range p.files {
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc == nil {
				continue
			}
			docs = append(docs, path)
			if want := docPrefix(f, p.dir); !strings.HasPrefix(f.Doc.Text(), want) {
				t.Errorf("%s: the package comment does not start with %q", path, want)
			}
		}
		if len(docs) != 1 {
			t.Errorf("package %s has %d package comments, want 1: %q", p.dir, len(docs), docs)
		}
	}
}

func docPrefix(f *ast.File, dir string) string {
	if f.Name.Name == "main" {
		return "Command " + filepath.Base(dir) + " "
	}
	return "Package " + f.Name.Name + " "
}

const (
	maxGoLines = 500      // of a file that people write
	maxTree    = 40 << 20 // bytes of all tracked files
)

// machinePath is a path that exists on somebody's machine only.
var machinePath = regexp.MustCompile(`(?:^|[^\w.])/(?:work|root|home/\w+|Users/\w+)/|\.\./shared/`)

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func TestTrackedFiles(t *testing.T) {
	var total int64
	for _, path := range tracked(t) {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue // removed and not yet committed
		}
		total += info.Size()
		switch filepath.Ext(path) {
		case ".safetensors", ".zst", ".gz":
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range bytes.Split(raw, []byte("\n")) {
			if m := machinePath.Find(line); m != nil {
				t.Errorf("%s:%d: names a path of one machine: %q", path, i+1, bytes.TrimSpace(m))
			}
		}
		if strings.HasSuffix(path, ".go") && !generated.Match(raw) {
			if n := bytes.Count(raw, []byte("\n")); n >= maxGoLines {
				t.Errorf("%s: %d lines, a file has fewer than %d: split it by concept", path, n, maxGoLines)
			}
		}
	}
	if total >= maxTree {
		t.Errorf("the tracked files are %d bytes together, the repository stays under %d", total, int64(maxTree))
	}
}

func TestMachinePathPattern(t *testing.T) {
	for text, want := range map[string]bool{
		"open " + "/ro" + "ot/model": true,
		`"/ho` + `me/ann/x"`:         true,
		"a.." + "/shared/data":       true,
		"internal/work/queue":        false,
		"https://example.org/work/":  false,
		"/models/llama":              false,
	} {
		if got := machinePath.MatchString(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// tracked lists the files git knows. Outside a git checkout (a module download)
// there is nothing to hold to.
func tracked(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "-z").Output()
	if err != nil {
		t.Skipf("git ls-files: %v: not a git checkout, so no tracked files to look at", err)
	}
	var list []string
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if name != "" {
			list = append(list, name)
		}
	}
	return list
}
