// Conversion between storage formats, to nearest even, NaN payloads as kernels/cast keeps
// them.
//
//	convert_{bf16,f16,f32}_{bf16,f16,f32}(src, dst, n), source first; no pair of equals
//
// CPU reference: kernels/cast/cast_generic.go. Launch: cuda.ConvertLaunch.
//
// A thread converts four elements at a time: 16 bytes of float32, 8 of a half format.
//
// Versions tried: 1 (this one), not measured yet.
//
// Bytes per element: 6 with float32 on a side, 4 between halves. Floor at 3.35 TB/s: 120 us
// for 8192x8192 float32 to bf16; at the speed of a device copy (2.73 TB/s) 147 us.
#include "common.h"

// Four elements as they stand in memory, and as the bits of float32.
template <class Format> struct Four {
	typedef uint2 type;
	static __device__ __forceinline__ uint4 widen(uint2 w) {
		return make_uint4(Format::to_f32_bits(w.x & 0xffffu), Format::to_f32_bits(w.x >> 16), Format::to_f32_bits(w.y & 0xffffu), Format::to_f32_bits(w.y >> 16));
	}
	static __device__ __forceinline__ uint2 narrow(uint4 b) {
		return make_uint2(Format::from_f32_bits(b.x) | Format::from_f32_bits(b.y) << 16, Format::from_f32_bits(b.z) | Format::from_f32_bits(b.w) << 16);
	}
	static __device__ __forceinline__ void store(void *dst, uint64_t i, uint32_t b) { ((uint16_t *)dst)[i] = (uint16_t)Format::from_f32_bits(b); }
};
template <> struct Four<F32> {
	typedef uint4 type;
	static __device__ __forceinline__ uint4 widen(uint4 w) { return w; }
	static __device__ __forceinline__ uint4 narrow(uint4 b) { return b; }
	static __device__ __forceinline__ void store(void *dst, uint64_t i, uint32_t b) { ((uint32_t *)dst)[i] = b; }
};

template <class From, class To> static __device__ __forceinline__ void convert(const void *__restrict__ src, void *__restrict__ dst, uint64_t n) {
	typedef typename Four<From>::type in;
	typedef typename Four<To>::type out;
	const uint64_t fours = n / 4;
	const Tile tile(fours);
	const in *__restrict__ x = (const in *)src + tile.at;
	out *__restrict__ y = (out *)dst + tile.at;
	in w[kUnroll];
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++)
		if (32 * u < tile.left) w[u] = x[32 * u];
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++)
		if (32 * u < tile.left) y[32 * u] = Four<To>::narrow(Four<From>::widen(w[u]));
	const uint64_t rest = 4 * fours + threadIdx.x;
	if (blockIdx.x == gridDim.x - 1 && rest < n) Four<To>::store(dst, rest, From::load_f32_bits(src, rest));
}

#define CONVERT(name, from, to) \
	extern "C" __global__ void __launch_bounds__(kThreads) name(const void *src, void *dst, uint64_t n) { convert<from, to>(src, dst, n); }
CONVERT(convert_bf16_f16, BF16, F16)
CONVERT(convert_bf16_f32, BF16, F32)
CONVERT(convert_f16_bf16, F16, BF16)
CONVERT(convert_f16_f32, F16, F32)
CONVERT(convert_f32_bf16, F32, BF16)
CONVERT(convert_f32_f16, F32, F16)
