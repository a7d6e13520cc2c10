package gpu_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/convert/enginetest"
	"github.com/nf4conv/nf4conv/convert/gpu"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// engine opens devices of a library until the test ends.
func engine(tb testing.TB, lib driver.Library, indices ...int) *gpu.Engine {
	tb.Helper()
	e, err := gpu.Open(lib, indices)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	})
	return e
}

// The engine on the GPUs of this machine.
func TestEngineDevice(t *testing.T) {
	lib, err := driver.Open()
	if err != nil {
		cudatest.NotRun(t, "cuda", "no device: %v", err)
	}
	enginetest.Run(t, engine(t, lib), len(lib.Devices()))
}

// The engine on the emulated kernels, behind a driver that does its work late.
func TestEngineEmulated(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_DEVICES=3")
	enginetest.Run(t, engine(t, lib, 0, 2), 2)
}

// quantize runs a conversion on an engine, or the CPU for nil.
func quantize(tb testing.TB, src, out string, e *gpu.Engine, caps []int64, change func(*convert.QuantizeOptions)) error {
	tb.Helper()
	c, err := hf.Open(src)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	o := convert.DefaultQuantize()
	if change != nil {
		change(&o)
	}
	run := convert.RunOptions{Out: out, NoSync: true}
	if e != nil {
		if o.Devices, err = e.Budgets(caps); err != nil {
			return err
		}
		run.Engine = e
	}
	p, err := convert.Quantize(c, o)
	if err != nil {
		return err
	}
	_, err = convert.Run(context.Background(), p, run)
	return err
}

// sameFiles wants two directories to hold the same bytes.
func sameFiles(tb testing.TB, a, b string) {
	tb.Helper()
	entries, err := os.ReadDir(a)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		x, err := os.ReadFile(filepath.Join(a, e.Name()))
		if err != nil {
			tb.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(b, e.Name()))
		if err != nil {
			tb.Fatal(err)
		}
		if string(x) != string(y) {
			tb.Errorf("%s differs", e.Name())
		}
	}
}

// Whole conversions give the CPU's bytes, manifest included, on one device and on three.
func TestConversion(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		spec   fixtures.Spec
		change func(*convert.QuantizeOptions)
	}{
		{"llama", fixtures.Spec{Hidden: 256, Intermediate: 704, Vocab: 2048, Shards: 2, Seed: 1}, nil},
		{"f32", fixtures.Spec{Hidden: 192, DType: "F32", Seed: 2}, func(o *convert.QuantizeOptions) { o.DoubleQuant = false }},
		{"f32 to f16", fixtures.Spec{Hidden: 96, DType: "F32", Seed: 3}, func(o *convert.QuantizeOptions) { o.DType, o.BlockSize = "float16", 4096 }},
		{"gpt2", fixtures.Spec{Arch: "gpt2", Hidden: 96, DType: "F16", Seed: 4}, func(o *convert.QuantizeOptions) { o.Type = 1 - o.Type }},
		{"mixtral", fixtures.Spec{Arch: "mixtral", Seed: 5}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := fixtures.Synthetic(t, filepath.Join(dir, c.name), c.spec)
			want := filepath.Join(dir, c.name+"-cpu")
			if err := quantize(t, src, want, nil, nil, c.change); err != nil {
				t.Fatal(err)
			}
			lib := cudatest.Open(t, "FAKECUDA_DEVICES=3")
			e := engine(t, lib)
			for _, caps := range [][]int64{nil, {1 << 19}, {1 << 19, 1 << 22, 1 << 20}} {
				out := filepath.Join(t.TempDir(), "out")
				if err := quantize(t, src, out, e, caps, c.change); err != nil {
					t.Fatal(err)
				}
				sameFiles(t, want, out)
			}
		})
	}
}

// What a device refuses ends the run with its name and what is to be done, and the CPU, or
// the device that is left, continues to the bytes of an undisturbed run.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	src := fixtures.Synthetic(t, filepath.Join(dir, "src"), fixtures.Spec{Hidden: 256, Intermediate: 704, Vocab: 2048, Layers: 4, Seed: 1})
	want := filepath.Join(dir, "want")
	if err := quantize(t, src, want, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, fail, message string
	}{
		{"memory of a worker", "cuMemAlloc_v2:6=2", "taking memory for a worker"},
		{"pinned memory", "cuMemHostAlloc:3=2", "taking memory for a worker"},
		{"launch", "cuLaunchKernel:9=719", "unspecified launch failure"},
		{"lost on the way", "cuLaunchKernel:17=700", "illegal memory access"},
		{"one of two lost", "cuMemcpyDtoHAsync_v2:3@1=719", "cuda:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lib := cudatest.Open(t, "FAKECUDA_DEVICES=2", "FAKECUDA_FAIL="+c.fail)
			lib.Careless() // a lost context cannot be tidied up
			e, err := gpu.Open(lib, nil)
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
			err = quantize(t, src, out, e, nil, nil)
			var lost *convert.DeviceError
			if !errors.As(err, &lost) || fault.ClassOf(err) != fault.IO || !strings.Contains(err.Error(), c.message) || len(fault.Hints(err)) == 0 {
				t.Fatalf("class %v, hints %v: %v", fault.ClassOf(err), fault.Hints(err), err)
			}
			if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
				t.Error("something stands under the final name")
			}
			if err := quantize(t, src, out, nil, nil, nil); err != nil {
				t.Fatal(err)
			}
			sameFiles(t, want, out)
			_ = e.Close()
		})
	}
}

// A cap that holds no chunk is refused before anything is written.
func TestTooLittleMemory(t *testing.T) {
	dir := t.TempDir()
	src := fixtures.Synthetic(t, filepath.Join(dir, "src"), fixtures.Spec{})
	lib := cudatest.Open(t, "FAKECUDA_DEVICES=2")
	e := engine(t, lib)
	for _, caps := range [][]int64{{1000}, {1 << 30, 1000}, {1, 2, 3}} {
		err := quantize(t, src, filepath.Join(dir, "out"), e, caps, nil)
		if fault.ClassOf(err) != fault.Usage || !strings.Contains(err.Error(), "--gpu-memory") {
			t.Errorf("caps %v: class %v: %v", caps, fault.ClassOf(err), err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestOpenNamesTheDevice(t *testing.T) {
	lib := cudatest.Open(t, "FAKECUDA_DEVICES=2")
	if _, err := gpu.Open(lib, []int{2}); fault.ClassOf(err) != fault.IO || !strings.Contains(err.Error(), "cuda:2") {
		t.Errorf("class %v: %v", fault.ClassOf(err), err)
	}
	if name := engine(t, lib).Name(); !strings.HasPrefix(name, "cuda:0,1 (") {
		t.Errorf("name %q", name)
	}
}
