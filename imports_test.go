package nf4conv

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/nf4conv/nf4conv"

// layers says what each package may import besides the standard library and itself:
// packages of the module (a name covers the packages below it) and, after "+", other
// modules. The longest matching key counts; a package without one fails the test.
// docs/architecture.md explains the order.
var layers = map[string]string{
	"kernels":                        "kernels +golang.org/x/sys",
	"kernels/cuda":                   "kernels nf4 +github.com/klauspost/compress",
	"nf4":                            "kernels kernels/quant4 internal/fault",
	"doublequant":                    "kernels",
	"arch":                           "kernels internal/fault",
	"formats/safetensors":            "kernels internal/fault internal/treehash +github.com/nlpodyssey/safetensors",
	"formats/formatstest":            "kernels nf4 formats",
	"formats/hf":                     "kernels internal/fault internal/treehash formats/safetensors",
	"formats/tokenizer":              "internal/fault +golang.org/x/text +github.com/rivo/uniseg",
	"formats/bnb":                    "kernels nf4 doublequant arch internal/fault formats/safetensors formats/hf",
	"formats/peft":                   "kernels internal/fault internal/treehash formats/safetensors formats/hf",
	"lora":                           "kernels +gonum.org/v1/gonum",
	"adapters":                       "kernels lora arch internal formats weights",
	"weights":                        "kernels nf4 doublequant internal formats",
	"convert":                        "kernels nf4 doublequant lora arch internal formats weights +golang.org/x/sync +golang.org/x/sys +github.com/google/renameio/v2",
	"inspect":                        "kernels nf4 arch internal formats weights",
	"compare":                        "kernels nf4 arch internal formats weights +golang.org/x/sync",
	"internal":                       "internal +golang.org/x/sys +lukechampine.com/blake3 +github.com/zeebo/blake3",
	"internal/tokenids":              "formats/tokenizer",
	"internal/bench":                 "fixtures kernels model internal formats verify/metric",
	"internal/kernelbench":           "kernels nf4",
	"fixtures":                       "",
	"model":                          "kernels arch internal formats weights",
	"verify":                         "kernels lora compare inspect model internal formats verify/metric +github.com/klauspost/compress +github.com/goccy/go-yaml +golang.org/x/sync",
	"verify/metric":                  "kernels/vexp",
	"verify/report":                  "verify internal +gonum.org/v1/plot",
	"internal/forward":               "model internal formats",
	"interop":                        "",
	"cmd":                            "kernels nf4 doublequant arch internal formats weights convert inspect compare verify bench cmd +github.com/urfave/cli/v2 +github.com/vbauerster/mpb/v8 +github.com/schollz/progressbar/v3 +golang.org/x/sys +golang.org/x/sync adapters",
	"kernels/cuda/driver":            "+github.com/ebitengine/purego +gorgonia.org/cu",
	"kernels/cuda/driver/drivertest": "kernels/cuda/driver",
	"kernels/cuda/attention":         "kernels",
	"kernels/cuda/cudatest":          "kernels +github.com/ebitengine/purego",
	"convert/gpu":                    "convert kernels nf4 doublequant internal",
	"convert/enginetest":             "convert kernels nf4 doublequant",
	"bench":                          "kernels nf4 doublequant internal",
	"":                               "",
}

// TestImportGraph reads the imports of every Go file but tests, under any build tag,
// so that a shortcut between the layers does not slip in for one platform only.
func TestImportGraph(t *testing.T) {
	for _, p := range packages(t) {
		rule, ok := ruleOf(p.dir)
		if !ok {
			t.Errorf("package %q has no rule in layers: say what it may import", p.dir)
			continue
		}
		for _, imp := range p.imports {
			if !allowed(p.dir, imp, rule) {
				t.Errorf("package %q imports %q, which its layer may not", p.dir, imp)
			}
		}
	}
}

// TestLayersWouldNotice shows that the rules refuse what they are there to refuse.
func TestLayersWouldNotice(t *testing.T) {
	for _, c := range []struct {
		dir, imp string
		want     bool
	}{
		{"nf4", module + "/formats/hf", false},
		{"nf4", module + "/kernels/quant4", true},
		{"kernels/quant4", module + "/nf4", false},
		{"kernels/quant4", module + "/kernels", true},
		{"kernels", "golang.org/x/sys/cpu", true},
		{"kernels", "github.com/urfave/cli/v2", false},
		{"doublequant", module + "/formats/safetensors", false},
		{"convert", module + "/cmd/nf4conv", false},
		{"formats/safetensors", module + "/formats/hf", false},
		{"convert", "os", true},
		{"convert", module + "/formatsx", false},
	} {
		rule, ok := ruleOf(c.dir)
		if !ok {
			t.Fatalf("no rule for %q", c.dir)
		}
		if got := allowed(c.dir, c.imp, rule); got != c.want {
			t.Errorf("%s may import %s: %v, want %v", c.dir, c.imp, got, c.want)
		}
	}
}

// TestDirectDependenciesAreJustified holds go.mod and docs/deps.md together.
func TestDirectDependenciesAreJustified(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	deps, err := os.ReadFile("docs/deps.md")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, p := range packages(t) {
		for _, imp := range slices.Concat(p.imports, p.testImports) {
			used[imp] = true
		}
	}
	for line := range strings.Lines(string(mod)) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) < 2 || !strings.Contains(f[0], ".") || !strings.HasPrefix(f[1], "v") {
			continue
		}
		direct := false
		for imp := range used {
			direct = direct || imp == f[0] || strings.HasPrefix(imp, f[0]+"/")
		}
		if direct && !strings.Contains(string(deps), "| `"+f[0]+"` "+f[1]+" |") {
			t.Errorf("packages import %s; docs/deps.md has no row for it at %s", f[0], f[1])
		}
	}
}

func ruleOf(dir string) (rule string, ok bool) {
	if dir == "." {
		return layers[""], true
	}
	for at := dir; at != "."; at = filepath.ToSlash(filepath.Dir(at)) {
		if rule, ok := layers[at]; ok {
			return rule, true
		}
	}
	return "", false
}

func allowed(dir, imp, rule string) bool {
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		return true // the standard library
	}
	own, within := strings.CutPrefix(imp, module)
	for _, r := range strings.Fields(rule) {
		if other, ok := strings.CutPrefix(r, "+"); ok {
			if imp == other || strings.HasPrefix(imp, other+"/") {
				return true
			}
		} else if within && (own == "/"+r || strings.HasPrefix(own, "/"+r+"/")) {
			return true
		}
	}
	return false
}

// goPackage is one directory with Go files.
type goPackage struct {
	dir                  string // relative, slashes
	files                []string
	imports, testImports []string
}

// packages finds every package of the module by its files, not by go list, which
// shows one platform at a time. Generators (_asm) and nested modules are not part.
func packages(t *testing.T) []goPackage {
	t.Helper()
	found := map[string]*goPackage{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if path != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "dist") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, c := range f.Comments {
			if c.Pos() < f.Package && strings.Contains(c.Text(), "//go:build ignore") {
				return nil
			}
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		p := found[dir]
		if p == nil {
			p = &goPackage{dir: dir}
			found[dir] = p
		}
		test := strings.HasSuffix(path, "_test.go")
		if !test {
			p.files = append(p.files, path)
		}
		for _, s := range f.Imports {
			imp, err := strconv.Unquote(s.Path.Value)
			if err != nil {
				return err
			}
			if test {
				p.testImports = append(p.testImports, imp)
			} else if !slices.Contains(p.imports, imp) {
				p.imports = append(p.imports, imp)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []goPackage
	for _, p := range found {
		list = append(list, *p)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].dir < list[j].dir })
	if len(list) < 10 {
		t.Fatalf("found %d packages only: not run in the root of the module?", len(list))
	}
	return list
}
