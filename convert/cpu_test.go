package convert_test

import (
	"testing"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/convert/enginetest"
)

func TestCPU(t *testing.T) { enginetest.Run(t, convert.CPU{}, 1) }
