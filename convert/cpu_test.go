package convert_test

import (
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/convert/enginetest"
	"github.com/nf4conv/nf4conv/kernels"
)

func TestCPU(t *testing.T) {
	for _, tier := range kernels.Tiers() {
		t.Run(tier, func(t *testing.T) {
			defer kernels.Use(tier)()
			enginetest.Run(t, convert.CPU{}, 1)
		})
	}
}
