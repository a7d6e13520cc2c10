// 4-bit blockwise quantization: the absmax of every block, a code per element, two to a
// byte (package kernels/quant4 defines the result, bit for bit).
//
//	quantize_{nf4,fp4}_{bf16,f16,f32}(src, packed, absmax, n, blocksize)
//	quantize_{nf4,fp4}_f32_as_{bf16,f16}: the source is rounded first, in registers
//
// CPU reference: kernels/quant4/quant4_generic.go. Launch: cuda.QuantizeLaunch.
//
// A warp takes kUnroll*32 16-byte loads in a row. The lanes of a block find its absmax by
// shuffles; blocks of 2 or 4 loads of the warp first join their loads; blocks of several
// warps join through shared memory. Data is read once and stays in registers. Absolute
// values are compared as integers, so that NaN counts as the largest.
//
// Versions tried on an H100 (bf16, blocks of 64, 8192x8192 elements, 172 MB, prototypes):
//	1  15 compares                                         1370 GB/s   50 % of a copy
//	2  select tree of 4 levels                             1755 GB/s   64 %
//	3  cells in the lanes, 2 shuffles; 1 load a thread     1955 GB/s   72 %
//	4  the same, 4 loads a thread (this one)               2621 GB/s   96 %
//	5  the same, 8 loads                                   2565 GB/s   94 %
//
// Bytes per element, blocks of 64: 2 + 0.5 + 4/64 = 2.5625 (f32: 4.5625). Floor at
// 3.35 TB/s: 51 us for 8192x8192 bf16; at the speed of a device copy (2.73 TB/s) 63 us.
// Shuffles: 2 per element, 4.5 elements a cycle and SM at that speed, of 32 lanes a cycle.
#include "codebook.h"

template <uint32_t kElems> struct PackedWord { typedef uint32_t type; };
template <> struct PackedWord<4> { typedef uint16_t type; };

// The largest magnitude of the block that each of the thread's loads belongs to; lanes is
// the number of loads of a block.
__device__ __forceinline__ void block_max(uint32_t (&m)[kUnroll], uint32_t lanes) {
	static_assert(kUnroll == 4, "blocks of more than a warp are joined in pairs of pairs");
	if (lanes > 32) {
		m[0] = m[1] = max(m[0], m[1]);
		m[2] = m[3] = max(m[2], m[3]);
		if (lanes > 64) m[0] = m[1] = m[2] = m[3] = max(m[0], m[2]);
	}
	for (uint32_t d = min(lanes, 32u) / 2; d > 0; d /= 2) {
#pragma unroll
		for (uint32_t u = 0; u < kUnroll; u++) m[u] = max(m[u], __shfl_xor_sync(kFull, m[u], (int)d));
	}
	if (lanes > 32 * kUnroll) {
		__shared__ uint32_t s_max[kThreads / 32];
		uint32_t warp = threadIdx.x / 32, team = lanes / (32 * kUnroll);
		if (threadIdx.x % 32 == 0) s_max[warp] = m[0];
		__syncthreads();
#pragma unroll 1
		for (uint32_t k = 0; k < team; k++) m[0] = max(m[0], s_max[(warp & ~(team - 1)) + k]);
		m[1] = m[2] = m[3] = m[0];
	}
}

// The short block at the end of a tensor, by one thread block: it divides, where whole
// blocks multiply by a reciprocal, and its absmax is never zero.
template <class Book, class Src>
__device__ __noinline__ void quantize_short(const void *src, void *packed, float *absmax, uint64_t start, uint32_t n, uint32_t blocksize) {
	__shared__ uint32_t s_top;
	if (threadIdx.x == 0) s_top = kTinyBits;
	__syncthreads();
	uint32_t m = 0;
	for (uint32_t i = threadIdx.x; i < n; i += kThreads) m = max(m, Src::load_f32_bits(src, start + i) & 0x7fffffffu);
	atomicMax(&s_top, m);
	__syncthreads();
	float a = __uint_as_float(s_top);
	uint8_t *out = (uint8_t *)packed + start / 2;
	for (uint32_t j = threadIdx.x; j < (n + 1) / 2; j += kThreads) {
		uint32_t hi = Book::code_alone(__fdiv_rn(__uint_as_float(Src::load_f32_bits(src, start + 2 * j)), a)), lo = Book::kZero;
		if (2 * j + 1 < n) lo = Book::code_alone(__fdiv_rn(__uint_as_float(Src::load_f32_bits(src, start + 2 * j + 1)), a));
		out[j] = (uint8_t)(hi << 4 | lo);
	}
	if (threadIdx.x == 0) absmax[start >> log2_of(blocksize)] = a;
}

template <class Book, class Src>
static __device__ __forceinline__ void quantize(const void *__restrict__ src, void *__restrict__ packed, float *__restrict__ absmax, uint64_t n, uint32_t blocksize) {
	constexpr uint32_t kElems = Src::kElems;
	typedef typename PackedWord<kElems>::type word;
	const uint64_t whole = n & ~(uint64_t)(blocksize - 1);
	const uint32_t lanes = blocksize / kElems, shift = log2_of(lanes);
	const Tile tile(whole / kElems);
	const uint4 *__restrict__ x = (const uint4 *)src + tile.at;
	word *__restrict__ out = (word *)packed + tile.at;
	float *__restrict__ scale = absmax + (tile.at >> shift); // adding 32*u carries into no other block
	uint4 w[kUnroll];
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		w[u] = 32 * u < tile.left ? x[32 * u] : make_uint4(0, 0, 0, 0);
	}
	const Book book;
	uint32_t m[kUnroll];
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		w[u] = Src::prepare(w[u]);
		m[u] = Src::max_magnitude(w[u]);
	}
	block_max(m, lanes);
#pragma unroll
	for (uint32_t u = 0; u < kUnroll; u++) {
		uint32_t a = Src::to_f32_bits(m[u]), codes = 0;
		float r = __frcp_rn(__uint_as_float(max(a, kTinyBits))), f[kElems];
		Src::widen(w[u], f);
#pragma unroll
		for (uint32_t j = 0; j < kElems; j++) book.put(codes, f[j] * r, 8 * (j / 2) + (j % 2 == 0 ? 4 : 0));
		if (32 * u < tile.left) {
			out[32 * u] = (word)codes;
			if ((((uint32_t)tile.at + 32 * u) & (lanes - 1)) == 0) scale[32 * u >> shift] = __uint_as_float(a);
		}
	}
	if (whole != n && blockIdx.x == gridDim.x - 1) quantize_short<Book, Src>(src, packed, absmax, whole, (uint32_t)(n - whole), blocksize);
}

#define QUANTIZE(name, book, source)                                                                                              \
	extern "C" __global__ void __launch_bounds__(kThreads) name(const void *src, void *packed, float *absmax, uint64_t n, uint32_t blocksize) { \
		quantize<book, source>(src, packed, absmax, n, blocksize);                                                                 \
	}
QUANTIZE(quantize_nf4_bf16, NF4, BF16)
QUANTIZE(quantize_nf4_f16, NF4, F16)
QUANTIZE(quantize_nf4_f32, NF4, F32)
QUANTIZE(quantize_nf4_f32_as_bf16, NF4, F32As<BF16>)
QUANTIZE(quantize_nf4_f32_as_f16, NF4, F32As<F16>)
QUANTIZE(quantize_fp4_bf16, FP4, BF16)
QUANTIZE(quantize_fp4_f16, FP4, F16)
QUANTIZE(quantize_fp4_f32, FP4, F32)
QUANTIZE(quantize_fp4_f32_as_bf16, FP4, F32As<BF16>)
QUANTIZE(quantize_fp4_f32_as_f16, FP4, F32As<F16>)
