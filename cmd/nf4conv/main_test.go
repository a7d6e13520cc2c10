package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/nf4conv/nf4conv/fixtures"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"nf4conv": measured})
}

// peakVariable names a file in which the program leaves the most memory it held. The
// process that waits for it cannot tell: what rusage says of a child includes its parent.
const peakVariable = "NF4CONV_TEST_PEAK"

// measured is main, with its memory measured where a test asks for it.
func measured() {
	code := run(os.Args[1:], os.Stdout, os.Stderr)
	if name := os.Getenv(peakVariable); name != "" {
		if err := os.WriteFile(name, strconv.AppendInt(nil, peakRSS(), 10), 0o666); err != nil {
			panic(err)
		}
	}
	os.Exit(code)
}

// program is the command line of this test binary running as nf4conv, with an
// environment in which no flag is preset.
func program(ctx context.Context, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	c := exec.CommandContext(ctx, self, args...)
	c.Args[0] = "nf4conv" // by which testscript.Main knows what to be
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NF4CONV_") {
			c.Env = append(c.Env, v)
		}
	}
	return c
}

// outcome is what a process left behind.
type outcome struct {
	code           int
	stdout, stderr string
	peak           int64 // bytes held at most; 0 where unknown
}

// nf4conv runs the program.
func nf4conv(tb testing.TB, args ...string) outcome {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := program(ctx, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	peakFile := filepath.Join(tb.TempDir(), "peak")
	c.Env = append(c.Env, peakVariable+"="+peakFile)
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatal(err)
	}
	var peak int64
	if b, err := os.ReadFile(peakFile); err == nil {
		if peak, err = strconv.ParseInt(string(b), 10, 64); err != nil {
			tb.Fatal(err)
		}
	}
	return outcome{c.ProcessState.ExitCode(), out.String(), errs.String(), peak}
}

// Scripts are the program as people use it: command lines, what they print, the exit
// code and the files that are there afterwards.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			for _, spec := range []struct {
				name string
				spec fixtures.Spec
			}{
				{"model", fixtures.Spec{Seed: 1}},
				{"sharded", fixtures.Spec{Seed: 1, Shards: 3}},
				{"moe", fixtures.Spec{Arch: "mixtral", Seed: 2}},
				{"gpt2", fixtures.Spec{Arch: "gpt2", Seed: 3}},
			} {
				if err := fixtures.Write(filepath.Join(e.WorkDir, spec.name), spec.spec); err != nil {
					return err
				}
			}
			e.Setenv("FIXTURES", fixtures.Dir(t))
			return nil
		},
	})
}

// Every verb prints, with --json, exactly one document that its schema allows, also when
// it fails.
func TestJSON(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	model := fixtures.Synthetic(t, at("model"), fixtures.Spec{})
	kjv := filepath.Join(fixtures.Dir(t), "models", "kjv-llama")
	plain := filepath.Join(fixtures.Dir(t), "adapters", "plain")
	for _, c := range []struct {
		name, want string
		code       int
		args       []string
	}{
		{"plan", "plan", 0, []string{"quantize", model, at("q"), "--dry-run"}},
		{"run", "run", 0, []string{"quantize", model, at("q"), "--sha256", "--card"}},
		{"run with globs", "run", 0, []string{"quantize", model, at("q2"), "--skip", "*.mlp.*", "--loader", "transformers", "--max-shard-size", "20KB"}},
		{"plan of dequantize", "plan", 0, []string{"dequantize", at("q"), at("d"), "--dry-run"}},
		{"run of dequantize", "run", 0, []string{"dequantize", at("q"), at("d")}},
		{"plan of merge", "plan", 0, []string{"merge", kjv, at("m"), "--adapter", plain, "--dry-run"}},
		{"run of merge", "run", 0, []string{"merge", kjv, at("m"), "--adapter", plain, "--adapter", plain + "=0.5"}},
		{"run of merge and quantize", "run", 0, []string{"merge", kjv, at("mq"), "--adapter", plain, "--quantize", "fp4"}},
		{"run of rows", "run", 0, []string{"merge", filepath.Join(fixtures.Dir(t), "arch", "mistral"), at("mr"), "--adapter", filepath.Join(fixtures.Dir(t), "adapters", "tokens")}},
		{"merge below the gate", "error", 3, []string{"merge", at("mq"), at("mg"), "--from-4bit", "--quantize", "nf4", "--adapter", plain, "--min-delta-kept", "1"}},
		{"adapter that cannot be merged", "error", 4, []string{"merge", kjv, at("x"), "--adapter", filepath.Join(fixtures.Dir(t), "adapters", "olora")}},
		{"inspect", "inspect", 0, []string{"inspect", model}},
		{"inspect tensors", "inspect", 0, []string{"inspect", at("q"), "--tensors"}},
		{"diff", "diff", 0, []string{"diff", model, at("q")}},
		{"diff of equals", "diff", 0, []string{"diff", model, model}},
		{"diff that fails", "diff", 3, []string{"diff", model, at("q"), "--exit-code"}},
		{"devices", "devices", 0, []string{"devices"}},
		{"version", "version", 0, []string{"version"}},
		{"help", "text", 0, []string{"--help"}},
		{"help of a verb", "text", 0, []string{"quantize", "--help"}},
		{"help by verb", "text", 0, []string{"help", "diff"}},
		{"nothing", "text", 0, nil},
		{"completion", "text", 0, []string{"completion", "bash"}},
		{"version by flag", "version", 0, []string{"--version"}},
		{"help of nothing", "error", 2, []string{"help", "nothing"}},
		{"wrong flag without verb", "error", 2, []string{"--no-such-flag"}},
		{"output without a name", "error", 2, []string{"quantize", model, "."}},
		{"nothing left", "error", 2, []string{"quantize", model, at("x"), "--skip", "*"}},
		{"wrong flag", "error", 2, []string{"quantize", "--no-such-flag"}},
		{"wrong verb", "error", 2, []string{"quantise"}},
		{"wrong value", "error", 2, []string{"quantize", model, at("x"), "--block-size", "63"}},
		{"no source", "error", 4, []string{"quantize", at("nothing"), at("x")}},
		{"already there", "error", 2, []string{"quantize", model, at("q")}},
		{"no GPU", "error", 5, []string{"quantize", model, at("x"), "--device", "cuda"}},
	} {
		r := nf4conv(t, append(c.args, "--json")...)
		if r.code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", c.name, r.code, c.code, r.stderr)
		}
		if got := validate(t, []byte(r.stdout)); got != c.want {
			t.Errorf("%s: the document is a %q, want %q", c.name, got, c.want)
		}
	}
	for _, out := range []string{"q", "q2", "d", "m", "mq", "mr"} {
		b, err := os.ReadFile(filepath.Join(at(out), "nf4conv.json"))
		if err != nil {
			t.Fatal(err)
		}
		if got := validate(t, b); got != "manifest" {
			t.Errorf("the manifest of %s is a %q", out, got)
		}
	}
}
