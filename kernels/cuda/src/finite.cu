// The first element whose magnitude, as an integer, is at least a limit: with the limit of
// infinity, the first NaN or infinity; with a lower one, the first element that a
// conversion would make infinite, too (cuda.FiniteLimit).
//
//	first_above_{16,32}(src, n, limit, first)
//
// first is a 64-bit index that the host sets to all ones before; the kernel lowers it.
// CPU reference: cast.FirstNonFinite. Launch: cuda.FiniteLaunch.
//
// Versions tried: 1 (this one), not measured yet. A thread takes the maximum of its loads
// and looks for the element only when that is too large, so the price is that of reading.
//
// Bytes per element: 2 or 4. Floor at 3.35 TB/s: 40 us for 8192x8192 of 16 bits.
#include "common.h"

template <class Format> static __device__ __forceinline__ void first_above(const void *__restrict__ src, uint64_t n, uint32_t limit, unsigned long long *first_bad) {
	constexpr uint32_t kElems = Format::kElems, kBits = 128 / kElems, kMagnitude = kBits == 16 ? 0x7fffu : 0x7fffffffu;
	const uint64_t loads = n / kElems;
	const Tile tile(loads);
	const uint4 *__restrict__ x = (const uint4 *)src + tile.at;
	uint4 w[kUnroll];
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		w[u] = 32 * u < tile.left ? x[32 * u] : make_uint4(0, 0, 0, 0);
	}
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		if (Format::max_magnitude(w[u]) < limit) continue;
		const uint32_t v[4] = {w[u].x, w[u].y, w[u].z, w[u].w};
		uint32_t at = kElems;
#pragma unroll
		for (int j = (int)kElems - 1; j >= 0; j--) {
			const uint32_t b = v[j * (int)kBits / 32] >> (j * (int)kBits % 32) & kMagnitude;
			if (b >= limit) at = (uint32_t)j;
		}
		atomicMin(first_bad, (unsigned long long)((tile.at + 32 * u) * kElems + at));
		break; // later loads of this thread have higher indices
	}
	const uint64_t rest = loads * kElems + threadIdx.x;
	if (blockIdx.x == gridDim.x - 1 && rest < n) {
		uint32_t b = kBits == 16 ? ((const uint16_t *)src)[rest] : ((const uint32_t *)src)[rest];
		if ((b & kMagnitude) >= limit) atomicMin(first_bad, (unsigned long long)rest);
	}
}

extern "C" __global__ void __launch_bounds__(kThreads) first_above_16(const void *src, uint64_t n, uint32_t limit, unsigned long long *first) {
	first_above<BF16>(src, n, limit, first);
}
extern "C" __global__ void __launch_bounds__(kThreads) first_above_32(const void *src, uint64_t n, uint32_t limit, unsigned long long *first) {
	first_above<F32>(src, n, limit, first);
}
