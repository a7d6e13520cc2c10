//go:build gorgonia && cgo && linux && (amd64 || arm64) && !nocuda

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

const childVariable = "NF4CONV_TEST_GORGONIA_CHILD"

// A gorgonia program is linked with libcuda.so.1 and looks it up when it starts, so the
// fake driver is tested in a process of its own.
func child(t *testing.T, test string, settings ...string) (output string, err error) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), childVariable+"=1", "LD_LIBRARY_PATH="+filepath.Dir(cudatest.Copy(t)), driver.LibraryVariable+"=")
	cmd.Env = append(cmd.Env, settings...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestGorgoniaFake(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		lib, err := driver.Open()
		if err != nil {
			t.Fatal(err)
		}
		drivertest.Run(t, lib, cudatest.Image)
		return
	}
	for _, mode := range []string{"deferred", "immediate"} {
		out, err := child(t, "TestGorgoniaFake", "FAKECUDA_DEVICES=2", "FAKECUDA_STREAMS="+mode)
		if err != nil || !strings.Contains(out, "--- PASS: TestGorgoniaFake/Axpy") {
			t.Errorf("%s: %v\n%s", mode, err, out)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "NOT RUN") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
}

// The package by itself ends a program on a machine without a GPU; ours goes on and says why.
func TestGorgoniaWithoutDevice(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		_, err := driver.Open()
		t.Logf("Open says: %v", err)
		if !errors.Is(err, driver.ErrNoDevice) && !errors.Is(err, driver.ErrTooOld) {
			t.Error("want ErrNoDevice or ErrTooOld")
		}
		return
	}
	for setting, says := range map[string]string{"FAKECUDA_DEVICES=0": "no CUDA device", "FAKECUDA_DRIVER_VERSION=11080": "11.8"} {
		if out, err := child(t, "TestGorgoniaWithoutDevice", setting); err != nil || !strings.Contains(out, says) {
			t.Errorf("%s: %v\n%s", setting, err, out)
		}
	}
}

func TestGorgoniaErrors(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		lib, err := driver.Open()
		if err != nil {
			t.Fatal(err)
		}
		d, err := lib.OpenDevice(0)
		if err != nil {
			t.Fatal(err)
		}
		_, host := d.AllocHost(1)
		st, err := d.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(host, driver.ErrUnsupported) || !errors.Is(st.Synchronize(), driver.ErrDeviceLost) {
			t.Error(host)
		}
		return
	}
	if out, err := child(t, "TestGorgoniaErrors", "FAKECUDA_FAIL=cuStreamSynchronize:1=719"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
