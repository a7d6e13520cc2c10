//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver_test

import (
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/cudatest"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver/drivertest"
)

func TestConformance(t *testing.T) {
	for name, settings := range map[string][]string{
		"deferred":  {"FAKECUDA_DEVICES=3"},
		"immediate": {"FAKECUDA_STREAMS=immediate"},
	} {
		t.Run(name, func(t *testing.T) {
			drivertest.Run(t, cudatest.Open(t, settings...), cudatest.Image)
		})
	}
}
