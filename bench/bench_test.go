package bench

import (
	"context"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
)

// Every rate is measured, and those of kernels stand beside a limit.
func TestCPU(t *testing.T) {
	defer func(n int64) { cpuElems = n }(cpuElems)
	cpuElems = 1 << 16
	r, err := CPU(context.Background(), 2)
	if err != nil {
		t.Fatal(err)
	}
	checkRates(t, r)
}

func TestGPU(t *testing.T) {
	defer func(a, b int64) { gpuElems, gpuLarge = a, b }(gpuElems, gpuLarge)
	gpuElems, gpuLarge = 1<<13, 1<<15
	lib := cudatest.Open(t)
	r, err := GPU(context.Background(), lib, 0)
	if err != nil {
		t.Fatal(err)
	}
	checkRates(t, r)
}

func TestDisk(t *testing.T) {
	defer func(n int64) { fileBytes = n }(fileBytes)
	fileBytes = 8 << 20
	r, err := Disk(context.Background(), t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	checkRates(t, r)
	if _, err := Disk(context.Background(), "/does/not/exist", 1); err == nil {
		t.Error("a directory that is not there was measured")
	}
}

func checkRates(t *testing.T, r *Report) {
	t.Helper()
	if len(r.Rates) == 0 {
		t.Error("nothing was measured")
	}
	for _, rate := range r.Rates {
		if rate.PerSec <= 0 || rate.Bytes <= 0 || rate.Seconds <= 0 || (rate.Of != "") != (rate.Share > 0) {
			t.Errorf("%+v", rate)
		}
	}
}
