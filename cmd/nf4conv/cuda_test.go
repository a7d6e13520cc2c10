package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// onFake runs the program on the fake driver.
func onFake(t *testing.T, settings []string, args ...string) outcome {
	t.Helper()
	c := program(context.Background(), args...)
	c.Env = append(c.Env, settings...)
	c.Env = append(c.Env, driver.LibraryVariable+"="+cudatest.Library(t))
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{c.ProcessState.ExitCode(), out.String(), errs.String(), 0}
}

// The same binary with a GPU, with several, and with everything that can be wrong with one.
func TestDeviceFlag(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	src := fixtures.Synthetic(t, at("model"), fixtures.Spec{Hidden: 128, Vocab: 512, Seed: 1})
	if r := nf4conv(t, "quantize", src, at("want"), "-q"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	two := []string{"FAKECUDA_DEVICES=2"}
	for i, c := range []struct {
		settings []string
		flags    []string
		code     int
		stderr   string // has this
	}{
		{two, []string{"--device", "cuda"}, 0, "cuda:0 ("},
		{two, []string{"--device", "cuda:1"}, 0, "run      cuda:1 ("},
		{two, []string{"--device", "cuda:1,0", "--gpu-memory", "1MiB,512KiB"}, 0, "run      cuda:1 ("},
		{two, []string{"--device", "auto"}, 0, "run      cpu"},
		{two, []string{"--device", "cuda:2"}, 5, "the driver shows 2"},
		{two, []string{"--device", "cuda:0,0"}, 2, "expected auto, cpu, cuda or cuda:N,M"},
		{two, []string{"--device", "cuda:"}, 2, "expected auto, cpu, cuda or cuda:N,M"},
		{two, []string{"--device", "cuda", "--gpu-memory", "1KB"}, 2, "--gpu-memory"},
		{two, []string{"--device", "cuda", "--gpu-memory", "1GB,1KB"}, 2, "on cuda:1"},
		{two, []string{"--device", "cuda", "--gpu-memory", "some"}, 2, "--gpu-memory"},
		{[]string{"FAKECUDA_INIT=100"}, []string{"--device", "cuda"}, 5, "no CUDA device"},
		{[]string{"FAKECUDA_DRIVER_VERSION=11080"}, []string{"--device", "cuda"}, 5, "too old"},
		{[]string{"FAKECUDA_CC=6.1"}, []string{"--device", "cuda"}, 5, "6.1"},
		{[]string{"FAKECUDA_FAIL=cuMemAlloc_v2:3=2"}, []string{"--device", "cuda"}, 5, "hint: less --gpu-memory"},
		{[]string{"FAKECUDA_FAIL=cuLaunchKernel:5=719"}, []string{"--device", "cuda"}, 5, "hint: what is done is kept"},
	} {
		out := at("out" + strings.Repeat("x", i))
		r := onFake(t, c.settings, append([]string{"quantize", src, out}, c.flags...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("%v %v: exit code %d, want %d with %q: %s", c.settings, c.flags, r.code, c.code, c.stderr, r.stderr)
		}
		if c.code == 5 { // the CPU takes over what was begun
			r = nf4conv(t, "quantize", src, out, "-q", "--device", "cpu")
		}
		if c.code == 2 {
			if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%v: something was written", c.flags)
			}
			continue
		}
		if name, same := sameFiles(t, at("want"), out); !same || r.code != 0 {
			t.Errorf("%v %v: %s differs from the CPU's", c.settings, c.flags, name)
		}
	}
}

// With --device auto a GPU that fails on the way, or cannot be used, is a line, and the CPU
// gives the bytes.
func TestAutoFallsBack(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	src := fixtures.Synthetic(t, at("model"), fixtures.Spec{Hidden: 128, Vocab: 512, Seed: 1})
	if r := nf4conv(t, "quantize", src, at("want"), "-q"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	for name, c := range map[string]struct{ setting, line string }{
		"used":      {"FAKECUDA_DEVICES=1", "run      cuda:0 ("},
		"lost":      {"FAKECUDA_FAIL=cuLaunchKernel:7=719", "warning: the CPU continues: cuda:0 (Fake GPU 0)"},
		"no memory": {"FAKECUDA_FAIL=cuMemHostAlloc:1=2", "warning: the CPU continues: cuda:0 (Fake GPU 0)"},
		"too old":   {"FAKECUDA_DRIVER_VERSION=11080", "warning: the CPU computes, no usable GPU"},
		"none":      {"FAKECUDA_INIT=100", "run      cpu"},
	} {
		t.Run(name, func(t *testing.T) {
			cudatest.Set(t, cudatest.Copy(t), c.setting)
			log, err := os.Create(at(name + ".log"))
			if err != nil {
				t.Fatal(err)
			}
			a := &app{stdout: log, stderr: log} // no size is too small for a GPU
			code := a.exitCode(a.main(context.Background(), []string{"quantize", src, at(name)}))
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(log.Name())
			if err != nil {
				t.Fatal(err)
			}
			if code != 0 || !strings.Contains(string(text), c.line) {
				t.Errorf("exit code %d, want 0 with %q: %s", code, c.line, text)
			}
			if file, same := sameFiles(t, at("want"), at(name)); !same {
				t.Errorf("%s differs from the CPU's", file)
			}
		})
	}
}

func TestDevicesOnFake(t *testing.T) {
	r := onFake(t, []string{"FAKECUDA_DEVICES=2", "NF4CONV_DISABLE=avx2"}, "devices")
	for _, want := range []string{"gpu      CUDA driver API 12.4", "* cuda:1   Fake GPU 1, compute capability 9.0", "kernels sm_90a.cubin", "selected cuda:0,1"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("expected %q in %s", want, r.stdout)
		}
	}
	if got := validate(t, []byte(onFake(t, []string{"FAKECUDA_DEVICES=2"}, "devices", "--json").stdout)); got != "devices" {
		t.Errorf("the document is a %q", got)
	}
	r = onFake(t, []string{"FAKECUDA_CC=5.2"}, "devices")
	if !strings.Contains(r.stdout, "- cuda:0") || !strings.Contains(r.stdout, "not usable: compute capability 5.2") || !strings.Contains(r.stdout, "selected cpu") {
		t.Error(r.stdout)
	}
}
