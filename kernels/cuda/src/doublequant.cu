// The second level of double quantization (package doublequant defines the result, bit
// for bit): the mean of the absmax, and 8-bit codes of their deviations from it, in groups
// of 256 with a nested absmax each.
//
//	absmax_sum(absmax, partial, n)          partial[g] = sum of absmax[4096g : 4096g+4096]
//	absmax_fold(partial, next, n)           the same of float64 sums
//	quantize_absmax(absmax, partial, count, map, codes, nested, offset, n, total)
//	                                        offset = sum of count <= 4096 partial sums / total
//	dequantize_absmax(codes, nested, map, offset, absmax, n, blocksize)
//
// CPU reference: doublequant/doublequant.go. Launch: cuda.AbsmaxSumLaunch and the ones
// after it. A tensor of total absmax may be summed in pieces that start at multiples of
// 4096 and quantized in pieces of n that start at multiples of 256. map is doublequant.Map.
//
// Sums have one order: 64 accumulators, number j of the elements j, j+64, ...; then the
// upper half is added to the lower one, six times. A block of 64 threads does 4096
// elements, and loads 32 of its 64 rows before it adds them.
//
// Versions tried:
//	1  the offset in a launch of its own
//	2  every block of quantize_absmax adds the partial sums itself: 4 rows for
//	   67 million weights, instead of a third launch. The host folds first when the sums
//	   are many (cuda.FoldAbove). On an H100 the two launches took 15 us for 67 million.
//	3  the midpoints as a tree (this one): steps of a search in a sorted array meet in one
//	   bank, some 27 cycles a value; here some 11.
//
// Bytes per absmax: 4 (sum), 4 + 1 + 4/256 (codes). With blocks of 64 that is 0.14 bytes
// per weight, from the second-level cache up to some 500 million weights: the launches
// cost more than the bytes.
#include "common.h"

constexpr uint32_t kSumLanes = 64, kSumGroup = 4096, kNested = 256;

// Called by all threads of a block, which are at least kSumLanes; thread 0 has the sum.
template <class T> __device__ __forceinline__ double group_sum(const T *__restrict__ v, uint32_t n) {
	constexpr uint32_t kRows = 32;
	__shared__ double s_acc[kSumLanes];
	double acc = 0;
	if (threadIdx.x < kSumLanes) {
		for (uint32_t row = 0; row < kSumGroup / kSumLanes && row * kSumLanes < n; row += kRows) {
			T x[kRows];
#pragma unroll
			for (uint32_t k = 0; k < kRows; k++) {
				uint32_t i = (row + k) * kSumLanes + threadIdx.x;
				x[k] = i < n ? v[i] : T(0);
			}
			// An absent element is a zero that is added: no sum is a negative zero.
#pragma unroll
			for (uint32_t k = 0; k < kRows; k++) acc = __dadd_rn(acc, (double)x[k]);
		}
		s_acc[threadIdx.x] = acc;
	}
	__syncthreads();
	if (threadIdx.x < 32) {
		acc = __dadd_rn(acc, s_acc[threadIdx.x + 32]);
		for (uint32_t half = 16; half > 0; half /= 2) acc = __dadd_rn(acc, __shfl_down_sync(kFull, acc, half));
	}
	return acc;
}

template <class T> static __device__ __forceinline__ void sum_groups(const T *v, double *partial, uint64_t n) {
	const uint64_t start = (uint64_t)blockIdx.x * kSumGroup, left = n - start;
	double sum = group_sum(v + start, left < kSumGroup ? (uint32_t)left : kSumGroup);
	if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(kSumLanes) absmax_sum(const float *absmax, double *partial, uint64_t n) {
	sum_groups(absmax, partial, n);
}

extern "C" __global__ void __launch_bounds__(kSumLanes) absmax_fold(const double *partial, double *next, uint64_t n) {
	sum_groups(partial, next, n);
}

// A warp quantizes a group, eight absmax a lane in two runs of four.
extern "C" __global__ void __launch_bounds__(kThreads) quantize_absmax(const float *__restrict__ absmax, const double *__restrict__ partial, uint32_t count,
                                                                       const float *__restrict__ map, uint8_t *__restrict__ codes, float *__restrict__ nested,
                                                                       float *__restrict__ offset, uint64_t n, uint64_t total) {
	const uint32_t lane = threadIdx.x & 31;
	const uint64_t group = (uint64_t)blockIdx.x * (kThreads / 32) + threadIdx.x / 32, start = group * kNested + 4 * lane;
	float y[8];
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		const uint64_t i = start + 128 * h;
		if (i + 4 <= n) {
			const float4 v = *(const float4 *)(absmax + i);
			y[4 * h] = v.x, y[4 * h + 1] = v.y, y[4 * h + 2] = v.z, y[4 * h + 3] = v.w;
		} else {
#pragma unroll
			for (uint32_t k = 0; k < 4; k++) y[4 * h + k] = i + k < n ? absmax[i + k] : 0.0f;
		}
	}
	// Midpoints of neighbouring entries as a search tree, level by level from node 1: the nodes of a
	// level lie in different banks, where those of a sorted array that one step of a search asks
	// for lie in the same few.
	__shared__ float s_tree[256];
	__shared__ float s_mean;
	if (threadIdx.x > 0) {
		const uint32_t level = 31 - __clz((int)threadIdx.x), at = (2 * (threadIdx.x - (1u << level)) + 1) * (128u >> level) - 1;
		s_tree[threadIdx.x] = __fmul_rn(__fadd_rn(map[at], map[at + 1]), 0.5f);
	}
	const double sum = group_sum(partial, count);
	if (threadIdx.x == 0) {
		s_mean = __double2float_rn(__ddiv_rn(sum, __ull2double_rn(total)));
		if (blockIdx.x == 0) *offset = s_mean;
	}
	__syncthreads();
	const float mean = s_mean;
	uint32_t top = 0;
#pragma unroll
	for (uint32_t k = 0; k < 8; k++) {
		y[k] = start + 128 * (k / 4) + k % 4 < n ? y[k] - mean : 0.0f;
		top = max(top, __float_as_uint(y[k]) & 0x7fffffffu);
	}
	for (uint32_t d = 16; d > 0; d /= 2) top = max(top, __shfl_xor_sync(kFull, top, (int)d));
	const float r = __frcp_rn(__uint_as_float(max(top, kTinyBits)));
	uint32_t code[8];
#pragma unroll
	for (uint32_t k = 0; k < 8; k++) {
		const float v = y[k] * r;
		uint32_t node = 1; // after eight levels 256 + the number of midpoints below v
#pragma unroll
		for (uint32_t level = 0; level < 8; level++) node = 2 * node + (s_tree[node] < v);
		code[k] = node - 256;
	}
	if (lane == 0 && start < n) nested[group] = __uint_as_float(top);
#pragma unroll
	for (uint32_t h = 0; h < 2; h++) {
		const uint64_t i = start + 128 * h;
		if (i + 4 <= n) {
			*(uint32_t *)(codes + i) = code[4 * h] | code[4 * h + 1] << 8 | code[4 * h + 2] << 16 | code[4 * h + 3] << 24;
		} else {
#pragma unroll
			for (uint32_t k = 0; k < 4; k++)
				if (i + k < n) codes[i + k] = (uint8_t)code[4 * h + k];
		}
	}
}

extern "C" __global__ void __launch_bounds__(kThreads) dequantize_absmax(const uint8_t *__restrict__ codes, const float *__restrict__ nested, const float *__restrict__ map,
                                                                         float offset, float *__restrict__ absmax, uint64_t n, uint32_t blocksize) {
	__shared__ float s_map[256];
	s_map[threadIdx.x] = map[threadIdx.x];
	__syncthreads();
	const uint64_t i = (uint64_t)blockIdx.x * kThreads + threadIdx.x;
	if (i < n) absmax[i] = __fadd_rn(__fmul_rn(s_map[codes[i]], nested[i / blocksize]), offset);
}
