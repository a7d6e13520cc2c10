// What all kernels share: 16-byte vectors, storage formats, and the few instructions that
// C++ has no name for. The same sources compile with nvcc for the device and with g++
// under emu/cuda_emu.h (NF4_EMU) for tests without one.
//
// Rules of the kernels, which the host keeps (see kernels.go):
//   - every device buffer starts at a multiple of 16 bytes;
//   - counts are of elements and 64 bits wide, block sizes powers of two from 32 to 4096;
//   - a launch has exactly the grid and block that kernels.go computes.
// Arithmetic is IEEE: no fused multiply-add but where __fmaf_rn says so, no flushing of
// subnormals, correctly rounded reciprocals and divisions (build.sh sets the flags).
// NaN results of arithmetic have no payload; what is copied or converted keeps it as
// kernels/cast does.
#pragma once

#if defined(NF4_EMU)
#include "../emu/cuda_emu.h"
#else
#include <stdint.h>

#define NF4_ARCH __CUDA_ARCH__
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]

// The maximum of each 16-bit half.
static __device__ __forceinline__ uint32_t max_u16x2(uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 900
	uint32_t r;
	asm("max.u16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
	return r;
#else
	return max(a & 0xffff0000u, b & 0xffff0000u) | max(a & 0xffffu, b & 0xffffu);
#endif
}

// Rounds to binary16, to nearest even.
static __device__ __forceinline__ uint32_t cvt_f16(float v) {
	uint16_t r;
	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
	return r;
}

// Widens binary16. NaN payloads are kept by f16_to_f32, not here.
static __device__ __forceinline__ float cvt_f32(uint32_t h) {
	float r;
	asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"((uint16_t)h));
	return r;
}

// Rounds two values to binary16 or bfloat16, the first into the low half. NaN becomes 0x7fff.
static __device__ __forceinline__ uint32_t pack_f16x2(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
	uint32_t r;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
	return r;
#else
	return cvt_f16(lo) | cvt_f16(hi) << 16;
#endif
}

static __device__ __forceinline__ uint32_t pack_bf16x2(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
	uint32_t r;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
	return r;
#else
	uint32_t a = __float_as_uint(lo), b = __float_as_uint(hi);
	a = lo != lo ? 0x7fffu : (a + 0x7fffu + (a >> 16 & 1)) >> 16;
	b = hi != hi ? 0x7fffu : (b + 0x7fffu + (b >> 16 & 1)) >> 16;
	return a | b << 16;
#endif
}
#endif

constexpr uint32_t kFull = 0xffffffffu;      // all lanes of a warp
constexpr uint32_t kThreads = 256;           // threads of a block, but for sums
constexpr uint32_t kUnroll = 4;              // independent 16-byte accesses of a thread
constexpr uint32_t kTile = kThreads * kUnroll; // accesses of a block
constexpr uint32_t kTinyBits = 0x006ce3eeu;  // 1e-38: the least divisor
constexpr uint32_t kInfBits = 0x7f800000u;

// The accesses of a thread: number at and, kUnroll times, the 32nd after it, less than
// left of which exist. A warp takes kUnroll*32 in a row, so that a block of up to
// kUnroll*32 accesses stays within a warp. Offsets from at are constants of the code.
struct Tile {
	uint64_t at;
	uint32_t left;
	__device__ __forceinline__ explicit Tile(uint64_t accesses) {
		at = (uint64_t)blockIdx.x * kTile + (threadIdx.x & ~31u) * kUnroll + (threadIdx.x & 31u);
		left = accesses <= at ? 0 : accesses - at < kTile ? (uint32_t)(accesses - at) : kTile;
	}
};

static __device__ __forceinline__ uint32_t log2_of(uint32_t power) { return 31u - (uint32_t)__clz((int)power); }

// A conversion that keeps NaN payloads, like kernels/cast.
static __device__ __forceinline__ uint32_t f32_to_bf16(uint32_t b) {
	return (b & 0x7fffffffu) > kInfBits ? b >> 16 | 0x40u : (b + 0x7fffu + (b >> 16 & 1)) >> 16;
}

static __device__ __forceinline__ uint32_t f32_to_f16(uint32_t b) {
	return (b & 0x7fffffffu) > kInfBits ? (b >> 16 & 0x8000u) | 0x7e00u | (b >> 13 & 0x3ffu) : cvt_f16(__uint_as_float(b));
}

static __device__ __forceinline__ uint32_t f16_to_f32(uint32_t h) {
	return (h & 0x7fffu) > 0x7c00u ? (h & 0x8000u) << 16 | 0x7fc00000u | (h & 0x3ffu) << 13 : __float_as_uint(cvt_f32(h));
}

// The largest of eight 16-bit magnitudes, compared as integers: NaN is the largest.
static __device__ __forceinline__ uint32_t max_magnitude16(uint4 w) {
	const uint32_t mask = 0x7fff7fffu;
#if NF4_ARCH >= 900
	uint32_t m = max_u16x2(max_u16x2(w.x & mask, w.y & mask), max_u16x2(w.z & mask, w.w & mask));
	return max(m >> 16, m & 0xffffu);
#else
	// The upper halves decide the order of whole words.
	uint32_t hi = max(max(w.x & mask, w.y & mask), max(w.z & mask, w.w & mask));
	uint32_t lo = max(max(w.x << 17, w.y << 17), max(w.z << 17, w.w << 17));
	return max(hi >> 16, lo >> 17);
#endif
}

static __device__ __forceinline__ uint32_t max_magnitude32(uint4 w) {
	const uint32_t mask = 0x7fffffffu;
	return max(max(w.x & mask, w.y & mask), max(w.z & mask, w.w & mask));
}

// Storage formats. kElems is the number of elements of a 16-byte access. A source is
// prepared once after loading; magnitudes are ordered integers that to_f32_bits turns into
// those of the float32.
struct BF16 {
	static constexpr uint32_t kElems = 8;
	static __device__ __forceinline__ uint4 prepare(uint4 w) { return w; }
	static __device__ __forceinline__ uint32_t max_magnitude(uint4 w) { return max_magnitude16(w); }
	static __device__ __forceinline__ uint32_t to_f32_bits(uint32_t h) { return h << 16; }
	static __device__ __forceinline__ uint32_t from_f32_bits(uint32_t b) { return f32_to_bf16(b); }
	static __device__ __forceinline__ void widen(uint4 w, float (&f)[8]) {
		const uint32_t v[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
		for (int j = 0; j < 4; j++) {
			f[2 * j] = __uint_as_float(v[j] << 16);
			f[2 * j + 1] = __uint_as_float(v[j] & 0xffff0000u);
		}
	}
	static __device__ __forceinline__ uint32_t pack(float lo, float hi) { return pack_bf16x2(lo, hi); }
	static __device__ __forceinline__ uint32_t load_f32_bits(const void *src, uint64_t i) { return to_f32_bits(((const uint16_t *)src)[i]); }
	static __device__ __forceinline__ void store(void *dst, uint64_t i, float v) { ((uint16_t *)dst)[i] = (uint16_t)pack(v, 0); }
};

struct F16 {
	static constexpr uint32_t kElems = 8;
	static __device__ __forceinline__ uint4 prepare(uint4 w) { return w; }
	static __device__ __forceinline__ uint32_t max_magnitude(uint4 w) { return max_magnitude16(w); }
	static __device__ __forceinline__ uint32_t to_f32_bits(uint32_t h) { return f16_to_f32(h); }
	static __device__ __forceinline__ uint32_t from_f32_bits(uint32_t b) { return f32_to_f16(b); }
	static __device__ __forceinline__ void widen(uint4 w, float (&f)[8]) {
		const uint32_t v[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
		for (int j = 0; j < 4; j++) {
			f[2 * j] = cvt_f32(v[j] & 0xffffu);
			f[2 * j + 1] = cvt_f32(v[j] >> 16);
		}
	}
	static __device__ __forceinline__ uint32_t pack(float lo, float hi) { return pack_f16x2(lo, hi); }
	static __device__ __forceinline__ uint32_t load_f32_bits(const void *src, uint64_t i) { return to_f32_bits(((const uint16_t *)src)[i]); }
	static __device__ __forceinline__ void store(void *dst, uint64_t i, float v) { ((uint16_t *)dst)[i] = (uint16_t)pack(v, 0); }
};

struct F32 {
	static constexpr uint32_t kElems = 4;
	static __device__ __forceinline__ uint4 prepare(uint4 w) { return w; }
	static __device__ __forceinline__ uint32_t max_magnitude(uint4 w) { return max_magnitude32(w); }
	static __device__ __forceinline__ uint32_t to_f32_bits(uint32_t b) { return b; }
	static __device__ __forceinline__ uint32_t from_f32_bits(uint32_t b) { return b; }
	static __device__ __forceinline__ void widen(uint4 w, float (&f)[4]) {
		f[0] = __uint_as_float(w.x), f[1] = __uint_as_float(w.y), f[2] = __uint_as_float(w.z), f[3] = __uint_as_float(w.w);
	}
	static __device__ __forceinline__ uint32_t load_f32_bits(const void *src, uint64_t i) { return ((const uint32_t *)src)[i]; }
	static __device__ __forceinline__ void store(void *dst, uint64_t i, float v) { ((float *)dst)[i] = v; }
};

// float32 that is rounded to a half format To before anything else happens to it.
template <class To> struct F32As : F32 {
	static __device__ __forceinline__ uint32_t round(uint32_t b) { return To::to_f32_bits(To::from_f32_bits(b)); }
	static __device__ __forceinline__ uint4 prepare(uint4 w) { return make_uint4(round(w.x), round(w.y), round(w.z), round(w.w)); }
	static __device__ __forceinline__ uint32_t load_f32_bits(const void *src, uint64_t i) { return round(F32::load_f32_bits(src, i)); }
};
