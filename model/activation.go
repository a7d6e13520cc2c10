package model

import (
	"math"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/vexp"
)

// Activation is the nonlinearity of a feed-forward block.
type Activation int

// The activations.
const (
	Identity  Activation = iota
	SiLU                 // x sigmoid(x)
	GELU                 // x Phi(x), exact (Hendrycks and Gimpel 2016, arXiv 1606.08415)
	GELUTanh             // its approximation by tanh
	QuickGELU            // x sigmoid(1.702 x)
	ReLU
	ReLU2 // the square of ReLU (So et al. 2021, arXiv 2109.08668)
	Tanh
)

// activations are the names of config.json.
var activations = map[string]Activation{
	"silu": SiLU, "swish": SiLU, "gelu": GELU, "gelu_python": GELU, "gelu_new": GELUTanh, "gelu_pytorch_tanh": GELUTanh,
	"gelu_fast": GELUTanh, "quick_gelu": QuickGELU, "relu": ReLU, "relu2": ReLU2, "tanh": Tanh, "linear": Identity,
}

func activationOf(name string) (Activation, error) {
	a, ok := activations[name]
	if !ok {
		return 0, fault.Inputf("activation %q is not implemented", name)
	}
	return a, nil
}

// root is sqrt(2/pi), of the approximation of GELU.
const root = math.Sqrt2 / math.SqrtPi

func (a Activation) apply(x []float32) {
	switch a {
	case Identity:
	case SiLU:
		vexp.Gate(x, 1, 0)
	case GELU:
		for i, v := range x {
			x[i] = float32(0.5 * float64(v) * math.Erfc(-float64(v)/math.Sqrt2))
		}
	case GELUTanh:
		vexp.Gate(x, 2*root, 2*root*0.044715)
	case QuickGELU:
		vexp.Gate(x, 1.702, 0)
	case ReLU:
		for i, v := range x {
			if v < 0 {
				x[i] = 0
			}
		}
	case ReLU2:
		for i, v := range x {
			x[i] = max(v, 0) * max(v, 0)
		}
	case Tanh:
		for i, v := range x {
			x[i] = float32(math.Tanh(float64(v)))
		}
	}
}
