// Dequantization: level of the code times the absmax of the block, rounded to float32 and
// then to the format of the result.
//
//	dequantize_{nf4,fp4}_{bf16,f16,f32}(packed, absmax, dst, n, blocksize)
//
// CPU reference: dequantizeGeneric in kernels/quant4/quant4_generic.go. Launch:
// cuda.DequantizeLaunch.
//
// A thread makes 16 bytes of the result at a time from 4 bytes of codes (2 for float32);
// the levels live in the lanes of the warp, one shuffle an element.
//
// Versions tried on an H100 (to bf16, blocks of 64, 8192x8192, 172 MB, prototype):
//	1  levels in the lanes, 4 stores a thread (this one)   2536 GB/s   93 % of a copy
//
// Bytes per element, blocks of 64: 0.5 + 4/64 + 2 = 2.5625 (f32: 4.5625). Floor at
// 3.35 TB/s: 51 us for 8192x8192 to bf16; at the speed of a device copy (2.73 TB/s) 63 us.
#include "codebook.h"

template <uint32_t kElems> struct CodeWord { typedef uint32_t type; };
template <> struct CodeWord<4> { typedef uint16_t type; };

template <class Dst> static __device__ __forceinline__ uint4 join(const float (&v)[8]) {
	return make_uint4(Dst::pack(v[0], v[1]), Dst::pack(v[2], v[3]), Dst::pack(v[4], v[5]), Dst::pack(v[6], v[7]));
}
template <class Dst> static __device__ __forceinline__ uint4 join(const float (&v)[4]) {
	return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}

template <class Book, class Dst>
static __device__ __forceinline__ void dequantize(const void *__restrict__ packed, const float *__restrict__ absmax, void *__restrict__ dst, uint64_t n, uint32_t blocksize) {
	constexpr uint32_t kElems = Dst::kElems;
	typedef typename CodeWord<kElems>::type word;
	const uint64_t stores = n / kElems;
	const uint32_t shift = log2_of(blocksize / kElems);
	const Tile tile(stores);
	const word *__restrict__ codes = (const word *)packed + tile.at;
	const float *__restrict__ scale = absmax + (tile.at >> shift); // adding 32*u carries into no other block
	uint4 *__restrict__ out = (uint4 *)dst + tile.at;
	uint32_t w[kUnroll];
	float a[kUnroll];
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		w[u] = 32 * u < tile.left ? codes[32 * u] : 0;
		a[u] = 32 * u < tile.left ? scale[32 * u >> shift] : 0.0f;
	}
	// Lanes 16 and above repeat the levels: a shuffle uses five bits of its index, the last of
	// which belongs to the next code and so does not matter.
	const float level = Book::level(threadIdx.x & 15);
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		float v[kElems];
#pragma unroll
		for (uint32_t j = 0; j < kElems; j++) v[j] = __shfl_sync(kFull, level, (int)(w[u] >> (8 * (j / 2) + (j % 2 == 0 ? 4 : 0)))) * a[u];
		if (32 * u < tile.left) out[32 * u] = join<Dst>(v);
	}
	// What does not fill 16 bytes.
	const uint64_t rest = stores * kElems + threadIdx.x;
	if (blockIdx.x == gridDim.x - 1 && rest < n) {
		uint32_t pair = ((const uint8_t *)packed)[rest / 2];
		Dst::store(dst, rest, Book::level(rest % 2 == 0 ? pair >> 4 : pair & 15) * absmax[rest >> log2_of(blocksize)]);
	}
}

#define DEQUANTIZE(name, book, format)                                                                                              \
	extern "C" __global__ void __launch_bounds__(kThreads) name(const void *packed, const float *absmax, void *dst, uint64_t n, uint32_t blocksize) { \
		dequantize<book, format>(packed, absmax, dst, n, blocksize);                                                                 \
	}
DEQUANTIZE(dequantize_nf4_bf16, NF4, BF16)
DEQUANTIZE(dequantize_nf4_f16, NF4, F16)
DEQUANTIZE(dequantize_nf4_f32, NF4, F32)
DEQUANTIZE(dequantize_fp4_bf16, FP4, BF16)
DEQUANTIZE(dequantize_fp4_f16, FP4, F16)
DEQUANTIZE(dequantize_fp4_f32, FP4, F32)
