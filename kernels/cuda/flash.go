package cuda

import (
	"fmt"

	"github.com/nf4conv/nf4conv/kernels"
)

// FlashParams is the argument of the attention kernels, struct FlashParams of
// src/flash_params.h field by field: that file has the definition, the layouts and the
// units. Device addresses are numbers; 0 is none.
type FlashParams struct {
	Q, K, V, Out, LSE        uint64
	QStarts, KStarts, KLens  uint64
	MaskOffsets, MaskColumns uint64
	Counter                  uint64
	QToken, QHead            int64
	KToken, KHead            int64
	VToken, VHead            int64
	OutToken, OutHead        int64
	TotalQ                   int64
	Sequences                int32
	MaxQ, MaxK               int32
	QHeads, KVHeads          int32
	Dim                      int32
	WindowLeft, WindowRight  int32
	MaskBlockQ, MaskBlockK   int32
	Scale, Softcap           float32
}

// FlashMaskBlock divides the blocks of a block mask in both directions.
const FlashMaskBlock = 128

// flashTile is how a kernel of flash_sm80.cu is launched: queries and keys of a tile, warps,
// buffers for tiles of keys and of values.
type flashTile struct{ dim, q, k, warps, stages int }

var (
	flashTiles      = []flashTile{{64, 128, 128, 4, 2}, {96, 128, 64, 4, 2}, {128, 128, 64, 4, 1}, {256, 64, 64, 4, 1}}
	flashTiles80    = []flashTile{{64, 128, 128, 4, 2}, {96, 128, 64, 4, 2}, {128, 128, 64, 4, 1}, {256, 128, 64, 8, 1}}
	flashTilesSmall = []flashTile{{64, 128, 64, 4, 2}, {96, 128, 64, 4, 1}, {128, 128, 32, 4, 1}, {256, 64, 64, 4, 1}}
)

// flashTilesOf are the tiles of an image: FLASH_SMALL_SHARED is for devices with 100 KB of
// shared memory and for those nobody knows yet, which compile the PTX.
func flashTilesOf(image string) []flashTile {
	switch image {
	case "flash_sm_80.cubin":
		return flashTiles80
	case "flash_sm_86.cubin", "flash_sm_89.cubin", "flash_sm_120.cubin", "flash_" + generic:
		return flashTilesSmall
	}
	return flashTiles
}

// FlashLaunch is a kernel with its grid and block and its bytes of dynamic shared memory,
// which the host allows first (above 48 KB).
type FlashLaunch struct {
	Name          string
	Grid          [3]uint32
	Block, Shared uint32
}

// FlashSM80 is the launch of a kernel of an image of FlashImage for elements of the format.
// There is none, and false is returned, for float32 and for a head dimension of more than
// 256 or that is no multiple of 8.
func FlashSM80(image string, f kernels.Float, p *FlashParams) (FlashLaunch, bool) {
	if f == kernels.F32 || p.Dim < 8 || p.Dim%8 != 0 {
		return FlashLaunch{}, false
	}
	for _, t := range flashTilesOf(image) {
		if int(p.Dim) > t.dim {
			continue
		}
		return FlashLaunch{
			Name:   fmt.Sprintf("flash_sm80_%s_%d", short(f), t.dim),
			Grid:   [3]uint32{grid(int64(p.MaxQ), int64(t.q)), uint32(p.QHeads), uint32(p.Sequences)},
			Block:  uint32(warpLanes * t.warps),
			Shared: uint32((t.q + 2*t.stages*t.k) * t.dim * 2),
		}, true
	}
	return FlashLaunch{}, false
}

// FlashImage is the module with the kernels of flash_sm80.cu for a device of compute
// capability major.minor, 8.0 or newer, and its name. The error is ErrUnsupported or
// ErrNotBuilt.
func FlashImage(major, minor int) (image []byte, name string, err error) {
	name, err = flashImageName(major, minor)
	if err != nil {
		return nil, "", err
	}
	image, err = readImage(name)
	return image, name, err
}

func flashImageName(major, minor int) (string, error) {
	cc := 10*major + minor
	if cc < 80 || minor < 0 || minor > 9 {
		return "", fmt.Errorf("attention on compute capability %d.%d, expected 8.0 or newer: %w", major, minor, ErrUnsupported)
	}
	name := "flash_" + generic
	for _, a := range architectures {
		if a/10 == major && a <= cc {
			name = fmt.Sprintf("flash_sm_%d.cubin", a)
		}
	}
	return name, nil
}
