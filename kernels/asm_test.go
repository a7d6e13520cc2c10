package kernels_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// outsideAVX2 is what an AVX2 function must not contain: mask and 512-bit registers and the
// registers from 16 on, which only AVX-512 has.
var outsideAVX2 = regexp.MustCompile(`\b(Z\d+|K[0-7]|[XY](1[6-9]|2\d|3[01]))\b`)

// legacy is a vector instruction without VEX prefix, which is slow beside those with one.
var legacy = regexp.MustCompile(`^\s+(MOVUP|MOVAP|MOVDQ|MOVSS|MOVSD|PADD|PAND|PXOR|POR|PSHUF|MULP|ADDP|SUBP|DIVS|MAXS|CVT)[A-Z0-9]*\s`)

// The name of every function in assembly says which tier it needs, and it keeps to it. Only a
// processor without AVX-512 would show otherwise.
func TestAssemblyKeepsToItsTier(t *testing.T) {
	files, err := filepath.Glob("*/*_amd64.s")
	if err != nil || len(files) == 0 {
		t.Fatalf("no assembly found: %v", err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		function, returns, upper := "", 0, false
		for lines := bufio.NewScanner(f); lines.Scan(); {
			line := lines.Text()
			if rest, ok := strings.CutPrefix(line, "TEXT ·"); ok {
				function, _, _ = strings.Cut(rest, "(")
				if !strings.HasSuffix(function, "AVX2") && !strings.HasSuffix(function, "AVX512") {
					t.Errorf("%s: %s does not name its tier", name, function)
				}
				upper = false
			}
			if strings.HasSuffix(function, "AVX2") && outsideAVX2.MatchString(line) {
				t.Errorf("%s: %s uses AVX-512: %s", name, function, strings.TrimSpace(line))
			}
			if legacy.MatchString(line) {
				t.Errorf("%s: %s mixes encodings: %s", name, function, strings.TrimSpace(line))
			}
			switch strings.TrimSpace(line) {
			case "VZEROUPPER":
				upper = true
			case "RET":
				returns++
				if !upper {
					t.Errorf("%s: %s returns without VZEROUPPER", name, function)
				}
			}
		}
		_ = f.Close() // only read
		if returns == 0 {
			t.Errorf("%s: no function returns", name)
		}
	}
}

// A call of a function that needs a tier stands behind a question for that tier: AVX-512
// in the branch of an if or a case, AVX2 after a question in the same function or, where
// that only dispatches, in each of its callers.
func TestAssemblyIsCalledBehindGuards(t *testing.T) {
	files, err := filepath.Glob("*/*_amd64.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files found: %v", err)
	}
	calls := 0
	type place struct {
		file, caller string
		avx2         bool // a question for AVX2 comes before
	}
	callers := map[string][]place{} // by package and function called
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			var stack []ast.Node
			asked := false
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if n == nil {
					stack = stack[:len(stack)-1]
					return true
				}
				stack = append(stack, n)
				if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "AVX2" {
					asked = true
				}
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				id, ok := call.Fun.(*ast.Ident)
				if !ok {
					return true
				}
				key := filepath.Dir(name) + "." + id.Name
				callers[key] = append(callers[key], place{name, fn.Name.Name, asked})
				if strings.HasSuffix(id.Name, "AVX512") {
					calls++
					if !guarded(stack) {
						t.Errorf("%s: %s calls %s without asking for AVX-512", name, fn.Name.Name, id.Name)
					}
				}
				return true
			})
		}
	}
	for key, places := range callers {
		if !strings.HasSuffix(key, "AVX2") && !strings.HasSuffix(key, "AVX512") {
			continue
		}
		for _, p := range places {
			calls++
			if p.avx2 {
				continue
			}
			above := callers[filepath.Dir(p.file)+"."+p.caller]
			if len(above) == 0 {
				t.Errorf("%s: %s calls %s without asking for AVX2", p.file, p.caller, key)
			}
			for _, q := range above {
				if !q.avx2 {
					t.Errorf("%s: %s reaches %s through %s without asking for AVX2", q.file, q.caller, key, p.caller)
				}
			}
		}
	}
	if calls < 20 {
		t.Errorf("only %d calls of assembly found", calls)
	}
}

// guarded says whether the innermost node stands in a branch whose condition asks for AVX-512.
func guarded(stack []ast.Node) bool {
	asks := func(n ast.Node) (yes bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "AVX512" {
				yes = true
			}
			if u, ok := n.(*ast.UnaryExpr); ok && u.Op == token.NOT {
				return false
			}
			return true
		})
		return yes
	}
	for i, n := range stack[:len(stack)-1] {
		switch n := n.(type) {
		case *ast.IfStmt:
			if asks(n.Cond) && stack[i+1] == n.Body {
				return true
			}
		case *ast.CaseClause:
			for _, e := range n.List {
				if asks(e) {
					return true
				}
			}
		}
	}
	return false
}
