package arch_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
)

var update = flag.Bool("update", false, "rewrite testdata/roles.txt")

// open describes the checkpoint in a directory of the fixtures.
func open(tb testing.TB, dir string) *arch.Model {
	tb.Helper()
	c, err := hf.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var infos []arch.TensorInfo
	for _, t := range c.Tensors() {
		_, float := t.DType.Float()
		infos = append(infos, arch.TensorInfo{Name: t.Name, Shape: t.Shape, Float: float})
	}
	m, err := arch.Describe(c.Config().Map(), infos, true)
	if err := errors.Join(err, c.Close()); err != nil {
		tb.Fatal(err)
	}
	return m
}

// TestRoles holds the role of every tensor of every fixture, as somebody has read it, in
// testdata/roles.txt. After a change, run with -update and read the difference.
func TestRoles(t *testing.T) {
	t.Setenv("NF4CONV_DATA", "")
	var b strings.Builder
	b.WriteString("# What arch.Describe says of the fixtures; go test -update rewrites it.\n" +
		"# Per tensor: 4 where it becomes 4-bit, T where it is stored transposed, F where it stays float32; role; name; why it stays 16-bit.\n")
	for _, dir := range fixtures.Models(t) {
		m := open(t, dir)
		fmt.Fprintf(&b, "\n== %s: %s %s, known %v, tied %v\n", filepath.Base(dir), m.Type, m.Class, m.Known, m.Tied)
		for _, w := range m.Warnings {
			fmt.Fprintf(&b, "warning: %s\n", w)
		}
		for i := range m.Tensors {
			x := &m.Tensors[i]
			marks := ""
			for _, f := range []struct {
				is   bool
				mark string
			}{{x.Quantizable, "4"}, {x.Transposed, "T"}, {x.KeepFP32, "F"}} {
				if f.is {
					marks += f.mark
				}
			}
			fmt.Fprintf(&b, "%-2s %-9s %s", marks, x.Role, x.Name)
			if x.Why != "" {
				fmt.Fprintf(&b, "  (%s)", x.Why)
			}
			b.WriteByte('\n')
		}
	}
	const path = "testdata/roles.txt"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.ReplaceAll(string(raw), "\r\n", "\n"), "\n")
	got := strings.Split(b.String(), "\n")
	bad := 0
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			if bad++; bad <= 10 {
				t.Errorf("line %d:\n got %q\nwant %q", i+1, g, w)
			}
		}
	}
	if bad > 10 {
		t.Errorf("and %d more lines", bad-10)
	}
}

// TestFixturesMakeSense holds every fixture to what is true of all models: 4-bit weights
// are matrices called weight, and heads, embeddings and norms are not among them.
func TestFixturesMakeSense(t *testing.T) {
	for _, dir := range fixtures.Models(t) {
		m := open(t, dir)
		n := 0
		for i := range m.Tensors {
			x := &m.Tensors[i]
			if x.Quantizable == strings.HasPrefix(x.Why, "16-bit") {
				t.Errorf("%s: %s: quantizable %v, because %q", filepath.Base(dir), x.Name, x.Quantizable, x.Why)
			}
			if !x.Quantizable {
				continue
			}
			n++
			for _, part := range []string{"embed", "norm", "ln_", "lm_head", "wte", "wpe", "experts", "router", "bias"} {
				if strings.Contains(strings.ToLower(x.Name), part) {
					t.Errorf("%s: %s would become 4-bit", filepath.Base(dir), x.Name)
				}
			}
			if !strings.HasSuffix(x.Name, ".weight") || x.InFeatures <= 0 || x.Module+".weight" != x.Name {
				t.Errorf("%s: %s: module %q, %d features in", filepath.Base(dir), x.Name, x.Module, x.InFeatures)
			}
		}
		if n == 0 {
			t.Errorf("%s: nothing becomes 4-bit", filepath.Base(dir))
		}
	}
}
