//go:build nocuda || !linux || !(amd64 || arm64) || (gorgonia && !cgo)

package driver

import "fmt"

func open() (Library, error) {
	return nil, fmt.Errorf("%w: this build has no CUDA backend", ErrNoDriver)
}
