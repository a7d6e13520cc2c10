// Package cuda holds the CUDA kernels of 4-bit quantization and attention, compiled, and what a host
// needs to launch them. It talks to no driver.
//
// The sources are src/*.cu, an operation a file; each says what it computes and what was
// tried. A kernel of quantization gives the bits that the Go definitions give (packages quant4, cast and
// doublequant), for every input: sums have a fixed order, reciprocals and divisions are
// correctly rounded, subnormals count. Only the payload of a NaN that arithmetic makes is
// the machine's own.
//
//	quantize_{nf4,fp4}_{bf16,f16,f32}           (src, packed, absmax, n u64, blockSize u32)
//	quantize_{nf4,fp4}_f32_as_{bf16,f16}        the same; the source is rounded first
//	dequantize_{nf4,fp4}_{bf16,f16,f32}         (packed, absmax, dst, n u64, blockSize u32)
//	convert_{bf16,f16,f32}_{bf16,f16,f32}       (src, dst, n u64)
//	first_above_{16,32}                         (src, n u64, limit u32, first *u64)
//	absmax_sum, absmax_fold                     (in *f32 or *f64, partial *f64, n u64)
//	quantize_absmax                             (absmax, partial *f64, count u32, map, codes, nested, offset *f32, n u64, total u64)
//	dequantize_absmax                           (codes, nested, map, offset f32, absmax, n u64, blockSize u32)
//	flash_sm80_{bf16,f16}_{64,96,128,256}       (FlashParams), in modules of their own: FlashImage
//
// Attention has a definition of its own, src/flash_params.h, and is as near to it as the
// storage format allows; its bits are the same every time, not those of package flash.
// Of the other kernels, arguments are device pointers unless a type is given. Every buffer
// starts at a multiple of 16 bytes. Block sizes are powers of two from 32 to 4096 (of dequantize_absmax: any).
// n elements start at a block's beginning; only the end of a tensor may be short of one.
//
// build.sh makes the images in bin with pinned compilers (toolchain.sh) and writes
// MANIFEST, the hashes of sources and images; a test holds them to it. The same sources
// run on the host under emu, with AddressSanitizer, in any order of threads.
//
// With the build tag nocuda no image is embedded.
package cuda

import (
	"errors"
	"fmt"
)

var (
	// ErrNotBuilt says that this binary was built without images (tag nocuda).
	ErrNotBuilt = errors.New("built without CUDA kernels")
	// ErrUnsupported says that no image runs on a device.
	ErrUnsupported = errors.New("no CUDA kernels for this device")
)

// architectures are those with a cubin, as numbers 10*major+minor, ascending.
var architectures = []int{75, 80, 86, 89, 90, 100, 120}

const (
	hopper  = "sm_90a.cubin" // for 9.0 and nothing else
	generic = "compute_80.ptx"
	oldest  = 75
)

// Image is the module for a device of compute capability major.minor, as the driver
// loads it, and its name: the device's own cubin, or the newest cubin of its major
// version that is not newer than it, or PTX, which the driver compiles (a second or so).
// The error is ErrUnsupported or ErrNotBuilt.
func Image(major, minor int) (image []byte, name string, err error) {
	name, err = imageName(major, minor)
	if err != nil {
		return nil, "", err
	}
	image, err = readImage(name)
	return image, name, err
}

func imageName(major, minor int) (string, error) {
	cc := 10*major + minor
	if cc < oldest || minor < 0 || minor > 9 {
		return "", fmt.Errorf("compute capability %d.%d, expected 7.5 or newer: %w", major, minor, ErrUnsupported)
	}
	if cc == 90 {
		return hopper, nil
	}
	name := generic
	for _, a := range architectures {
		if a/10 == major && a <= cc {
			name = fmt.Sprintf("sm_%d.cubin", a)
		}
	}
	return name, nil
}
