//go:build !purego

package cast

import (
	"unsafe"

	"github.com/nf4conv/nf4conv/kernels"
)

//go:generate go run -C ../_asm ./cast -out ../cast/cast_amd64.s

const (
	// group is how many elements the assembly converts at a time.
	group = 32
	// callElems is how many elements one call of assembly goes through: it cannot be
	// preempted, so that a call takes some tens of microseconds.
	callElems = 1 << 17
	// step is how many bytes the assembly looks at together.
	step = 128
)

// bytes is the memory of x, which is little endian on this architecture.
func bytes(x []float32) []byte {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*len(x))
}

func toF32(dst []float32, src []byte, from kernels.Float) {
	if from == kernels.F32 {
		copy(bytes(dst), src)
		return
	}
	n, _ := convertGroups(bytes(dst), kernels.F32, src, from)
	toF32Generic(dst[n:], src[n*from.Size():], from)
}

func fromF32(dst []byte, src []float32, to kernels.Float) {
	if to == kernels.F32 {
		copy(dst, bytes(src))
		return
	}
	n, _ := convertGroups(dst, to, bytes(src), kernels.F32)
	fromF32Generic(dst[n*to.Size():], src[n:], to)
}

// convert reports whether all results are known to be finite.
func convert(dst []byte, to kernels.Float, src []byte, from kernels.Float) bool {
	n, finite := convertGroups(dst, to, src, from)
	dst, src = dst[n*to.Size():], src[n*from.Size():]
	convertGeneric(dst, to, src, from)
	return finite && firstNonFiniteGeneric(dst, to) < 0
}

// convertGroups converts whole groups, as far as there are some and assembly for them, and
// returns how many elements that are and whether all results are finite.
func convertGroups(dst []byte, to kernels.Float, src []byte, from kernels.Float) (n int, finite bool) {
	if !kernels.Features.AVX2 || to == from {
		return 0, false
	}
	var bad uint32
	for end := len(src) / from.Size() / group * group; n < end; {
		k := min(end-n, callElems)
		bad |= convertAsm(&dst[n*to.Size()], to, &src[n*from.Size()], from, k/group)
		n += k
	}
	return n, bad == 0
}

func convertAsm(dst *byte, to kernels.Float, src *byte, from kernels.Float, groups int) uint32 {
	type pair struct{ from, to kernels.Float }
	if kernels.Features.AVX512 {
		switch (pair{from, to}) {
		case pair{kernels.F32, kernels.BF16}:
			return convertF32ToBF16AVX512(dst, src, groups)
		case pair{kernels.F32, kernels.F16}:
			return convertF32ToF16AVX512(dst, src, groups)
		case pair{kernels.BF16, kernels.F32}:
			return convertBF16ToF32AVX512(dst, src, groups)
		case pair{kernels.BF16, kernels.F16}:
			return convertBF16ToF16AVX512(dst, src, groups)
		case pair{kernels.F16, kernels.F32}:
			return convertF16ToF32AVX512(dst, src, groups)
		case pair{kernels.F16, kernels.BF16}:
			return convertF16ToBF16AVX512(dst, src, groups)
		}
	}
	switch (pair{from, to}) {
	case pair{kernels.F32, kernels.BF16}:
		return convertF32ToBF16AVX2(dst, src, groups)
	case pair{kernels.F32, kernels.F16}:
		return convertF32ToF16AVX2(dst, src, groups)
	case pair{kernels.BF16, kernels.F32}:
		return convertBF16ToF32AVX2(dst, src, groups)
	case pair{kernels.BF16, kernels.F16}:
		return convertBF16ToF16AVX2(dst, src, groups)
	case pair{kernels.F16, kernels.F32}:
		return convertF16ToF32AVX2(dst, src, groups)
	case pair{kernels.F16, kernels.BF16}:
		return convertF16ToBF16AVX2(dst, src, groups)
	}
	panic("cast: internal error: no conversion from " + from.String() + " to " + to.String())
}

func firstNonFinite(src []byte, f kernels.Float) int {
	done := 0
	if kernels.Features.AVX2 {
		const callSteps = callElems * 2 / step
		for done+step <= len(src) {
			n := min((len(src)-done)/step, callSteps)
			k := finiteAsm(&src[done], n, f)
			done += k
			if k < n*step {
				break
			}
		}
	}
	if i := firstNonFiniteGeneric(src[done:], f); i >= 0 {
		return done/f.Size() + i
	}
	return -1
}

func allFinite(x []float32) bool { return firstNonFinite(bytes(x), kernels.F32) < 0 }

func finiteAsm(src *byte, steps int, f kernels.Float) int {
	if f == kernels.F32 {
		const exponent = 0x7f800000
		if kernels.Features.AVX512 {
			return finite32AVX512(src, steps, exponent)
		}
		return finite32AVX2(src, steps, exponent)
	}
	exponent := uint32(exponent16(f)) * 0x00010001
	if kernels.Features.AVX512 {
		return finite16AVX512(src, steps, exponent)
	}
	return finite16AVX2(src, steps, exponent)
}
