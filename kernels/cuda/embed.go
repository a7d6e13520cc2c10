//go:build !nocuda

package cuda

import (
	"embed"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

//go:embed bin/*.zst
var images embed.FS

func readImage(name string) ([]byte, error) {
	packed, err := images.ReadFile("bin/" + name + ".zst")
	if err != nil {
		return nil, fmt.Errorf("reading CUDA image %q: %w", name, err)
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("reading CUDA image %q: %w", name, err)
	}
	defer r.Close()
	image, err := r.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("decompressing CUDA image %q: %w", name, err)
	}
	return image, nil
}
