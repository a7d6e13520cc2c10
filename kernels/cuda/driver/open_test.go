//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver/drivertest"
)

func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "text.so")
	if err := os.WriteFile(file, []byte("no library\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		path     string // "" for the fake
		settings []string
		visible  string
		is       error
		says     []string
	}{
		{name: "no file", path: filepath.Join(dir, "nowhere.so"), is: driver.ErrNoDriver, says: []string{"nowhere.so", "NF4CONV_CUDA_LIBRARY", "no CUDA driver"}},
		{name: "no library", path: file, is: driver.ErrNoDriver, says: []string{"text.so"}},
		{name: "other library", path: other(t, dir, "int nothing;"), is: driver.ErrNoDriver, says: []string{"lacks the symbol cuInit", "other.so"}},
		{name: "too old", settings: []string{"FAKECUDA_DRIVER_VERSION=11080"}, is: driver.ErrTooOld, says: []string{"11.8", "12.0", "r525"}},
		{name: "too old and incomplete", path: other(t, dir, "int cuInit(unsigned f) { return f; } int cuDriverGetVersion(int *v) { *v = 10020; return 0; }"),
			is: driver.ErrTooOld, says: []string{"10.2", "12.0"}},
		{name: "no device", settings: []string{"FAKECUDA_DEVICES=0"}, is: driver.ErrNoDevice, says: []string{"no CUDA device"}},
		{name: "hidden devices", settings: []string{"FAKECUDA_INIT=100"}, visible: "7", is: driver.ErrNoDevice, says: []string{`CUDA_VISIBLE_DEVICES is "7"`}},
		{name: "stub", settings: []string{"FAKECUDA_INIT=34"}, is: driver.ErrNoDriver, says: []string{"stub"}},
		{name: "not ready", settings: []string{"FAKECUDA_INIT=802"}, is: &driver.Error{Code: 802}, says: []string{"cuInit", "system not yet initialized", "CUDA_ERROR_SYSTEM_NOT_READY"}},
		{name: "code without a name", settings: []string{"FAKECUDA_INIT=31000"}, is: &driver.Error{Code: 31000}, says: []string{"31000"}},
		{name: "no name", settings: []string{"FAKECUDA_DEVICES=2", "FAKECUDA_FAIL=cuDeviceGetName:2=999"}, is: &driver.Error{Code: 999}, says: []string{"cuDeviceGetName"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.path == "" {
				c.path = cudatest.Copy(t)
			}
			cudatest.Set(t, c.path, c.settings...)
			if c.visible != "" {
				t.Setenv("CUDA_VISIBLE_DEVICES", c.visible)
			}
			lib, err := driver.Open()
			if lib != nil || !errors.Is(err, c.is) {
				t.Fatalf("%v, %v: want %v", lib, err, c.is)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			for _, other := range []error{driver.ErrNoDriver, driver.ErrTooOld, driver.ErrNoDevice} {
				if !errors.Is(c.is, other) && errors.Is(err, other) {
					t.Errorf("%q is %q too", err, other)
				}
			}
		})
	}
}

// other compiles a library that is not the driver.
func other(t *testing.T, dir, code string) string {
	t.Helper()
	cudatest.Library(t) // there is a compiler
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	sub, err := os.MkdirTemp(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(sub, "other.so")
	cmd := exec.Command(cc, "-shared", "-fPIC", "-x", "c", "-", "-o", path)
	cmd.Stdin = strings.NewReader(code)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// Without the variable the usual names are tried, and the error lists what the loader said.
func TestOpenSearches(t *testing.T) {
	t.Setenv(driver.LibraryVariable, "")
	lib, err := driver.Open()
	if err == nil {
		t.Logf("found %s, CUDA %s", lib.Path(), lib.Version())
		return
	}
	if !errors.Is(err, driver.ErrNoDriver) {
		t.Logf("a driver is there: %v", err)
		return
	}
	for _, s := range []string{"libcuda.so.1", "/usr/lib/wsl/"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

// A driver of 12.0 tells nothing of kernel parameters; some lack tensor maps.
func TestOldDriver(t *testing.T) {
	cudatest.Set(t, cudatest.Copy(t, "-DFAKECUDA_OLD"), "FAKECUDA_DRIVER_VERSION=12000", "FAKECUDA_CC=8.0")
	lib, err := driver.Open()
	if err != nil {
		t.Fatal(err)
	}
	if v := lib.Version().String(); v != "12.0" {
		t.Errorf("version %s", v)
	}
	drivertest.Run(t, lib, cudatest.Image)
	d := must(lib.OpenDevice(0))
	defer d.Close()
	if _, err := d.EncodeTensorMap(driver.TensorMapSpec{Dims: []uint64{4}, Box: []uint32{4}}); !errors.Is(err, driver.ErrUnsupported) {
		t.Errorf("%v: want ErrUnsupported", err)
	}
}
