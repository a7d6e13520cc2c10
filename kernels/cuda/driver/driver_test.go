package driver_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

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

// image is the module with the probes for the first device: of the images in
// kernels/cuda/bin the cubin for its compute capability, or the PTX for all.
func image(tb testing.TB, lib driver.Library) []byte {
	tb.Helper()
	first := lib.Devices()[0]
	if strings.HasPrefix(first.Name, "Fake GPU") {
		return cudatest.Image
	}
	raw, err := os.ReadFile(fmt.Sprintf("../bin/sm_%d.cubin.zst", first.ComputeCapability()))
	if err != nil {
		raw, err = os.ReadFile("../bin/compute_80.ptx.zst")
	}
	if err != nil {
		cudatest.NotRun(tb, "cuda", "no image with the probe kernels: %v", err)
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer z.Close()
	image, err := z.DecodeAll(raw, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return image
}
