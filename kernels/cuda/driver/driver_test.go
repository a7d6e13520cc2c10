package driver_test

import (
	"errors"
	"os"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver/drivertest"
)

func TestFakeDriver(t *testing.T) {
	for name, settings := range map[string][]string{
		"deferred":  {"FAKECUDA_DEVICES=3"},
		"immediate": {"FAKECUDA_STREAMS=immediate", "FAKECUDA_CC=8.0"},
	} {
		t.Run(name, func(t *testing.T) {
			drivertest.Run(t, cudatest.Open(t, settings...), cudatest.Image)
		})
	}
}

func TestDevice(t *testing.T) {
	lib, err := driver.Open()
	if errors.Is(err, driver.ErrNoDriver) || errors.Is(err, driver.ErrNoDevice) {
		cudatest.NotRun(t, "cuda", "no device: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, CUDA %s, through %s", lib.Path(), lib.Version(), lib.Binding())
	drivertest.Run(t, lib, image(t, lib))
}

// image is the module with the probes: PTX for a GPU.
func image(tb testing.TB, lib driver.Library) []byte {
	tb.Helper()
	if os.Getenv("NF4CONV_CUDA_LIBRARY") != "" || lib.Devices()[0].Name == "Fake GPU 0" {
		return cudatest.Image
	}
	raw, err := os.ReadFile("testdata/probe.ptx")
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}
