// FlashAttention forward for compute capability 8.0 and newer: mma.sync, ldmatrix, cp.async.
// flash_params.h says what it computes.
//
//	grid    ceil(max_q/BM), q_heads, sequences      block   32*WARPS threads
//	dynamic shared memory   (BM + 2*STAGES*BN) * HD * 2 bytes
//
//	HD    BM   BN   WARPS  STAGES   bytes    with FLASH_SMALL_SHARED: 100 KB a multiprocessor
//	64    128  128  4      2        81920    128  64  4  2  49152
//	96    128  64   4      2        73728    128  64  4  1  49152
//	128   128  64   4      1        65536    128  32  4  1  49152
//	256   64   64   4      1        98304    64   64  4  1  98304
//	256   128  64   8      1        131072   8.x: 164 KB, one block
//
// A block computes BM queries of one head; a warp owns BM/WARPS rows of the scores, so that
// rows never cross warps. Tiles of keys are visited from the last to the first; within a
// head, the tiles of queries as well, so that the long ones of a causal mask start first.
// With a block mask, whose long rows can be anywhere, all heads of a row start together.
// Tiles in shared memory have their 16-byte chunks permuted by row, so that neither copies
// nor ldmatrix meet bank conflicts. The maximum that probabilities are taken against
// follows the true one only when that is kLag octaves ahead: the accumulators are
// rescaled about once a row, and most tiles need no exchange between lanes at all.
#include "flash_tiles.h"

#if defined(NF4_EMU) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

constexpr float kLag = 8; // probabilities are at most 2^kLag

// Byte offset of 16-byte chunk c of row r: any eight rows have chunk c in eight different
// places modulo 128 bytes.
template <int HD> static __device__ __forceinline__ uint32_t chunk(uint32_t r, uint32_t c) {
	return r * (HD * 2) + ((HD % 64 == 0 ? c ^ (r & 7) : c ^ (r >> 1 & 3)) << 4);
}

// Starts copying rows of a tensor into a tile; what is beyond rows or dim becomes zero.
template <int HD, int ROWS, int THREADS>
static __device__ __forceinline__ void copy_tile(uint32_t dst, const uint16_t *src, int64_t stride, int rows, int dim) {
	constexpr int wide = HD % 128 == 0 ? 16 : HD % 64 == 0 ? 8 : 4; // chunks of a row side by side
	constexpr int step = THREADS / wide;
	static_assert(ROWS % step == 0, "whole passes");
	const int c = threadIdx.x % wide, r0 = threadIdx.x / wide;
	src += r0 * stride + c * 8;
#pragma unroll
	for (int i = 0; i < ROWS / step; i++) {
#pragma unroll
		for (int g = 0; g < HD / 8 / wide; g++) {
			const bool exists = r0 + i * step < rows && (c + g * wide) * 8 < dim;
			cp_async16(dst + chunk<HD>(r0 + i * step, c + g * wide), exists ? src + g * wide * 8 : nullptr, exists);
		}
		src += step * stride;
	}
}

template <class T, int HD, int BM, int BN, int WARPS, int STAGES>
static __device__ __forceinline__ void flash_forward(const FlashParams &p) {
	constexpr int kWarpThreads = WARPS * 32;
	constexpr int MT = BM / WARPS / 16, NT = BN / 8, DT = HD / 8;
	constexpr uint32_t kBytesKV = BN * HD * 2;
	constexpr bool kInterleave = HD < 128; // exponentials between the products with values

	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y;
	if (p.mask_offsets) { // all heads of a row together: one has no more to do than another
		const uint32_t id = blockIdx.y * gridDim.x + blockIdx.x;
		head = id % gridDim.y, tile = id / gridDim.y;
		if (p.window_right == 0) tile = gridDim.x - 1 - tile;
	}
	const int i0 = tile * BM, kv_head = head / (p.q_heads / p.kv_heads);
	const FlashSequence seq(p, blockIdx.z);
	if (i0 >= seq.q) return;

	const uint32_t s_q = shared_base(), s_k = s_q + BM * HD * 2, s_v = s_k + STAGES * kBytesKV;
	const uint16_t *const k = (const uint16_t *)p.k + seq.k0 * p.k_token + kv_head * p.k_head;
	const uint16_t *const v = (const uint16_t *)p.v + seq.k0 * p.v_token + kv_head * p.v_head;
	auto copy_k = [&](int j, int stage) { copy_tile<HD, BN, kWarpThreads>(s_k + stage * kBytesKV, k + j * p.k_token, p.k_token, seq.k - j, p.dim); };
	auto copy_v = [&](int j, int stage) { copy_tile<HD, BN, kWarpThreads>(s_v + stage * kBytesKV, v + j * p.v_token, p.v_token, seq.k - j, p.dim); };

	float o[MT][DT][4], m[MT][2], l[MT][2];
#pragma unroll
	for (int i = 0; i < MT; i++) {
#pragma unroll
		for (int d = 0; d < DT; d++)
#pragma unroll
			for (int e = 0; e < 4; e++) o[i][d][e] = 0;
		m[i][0] = m[i][1] = -INFINITY;
		l[i][0] = l[i][1] = 0;
	}

	// Softcapped scores are in units of the exponent already.
	const float scale = p.softcap > 0 ? 1 : p.scale, log2_scale = scale * kLog2e;
	const float inner = p.softcap > 0 ? p.scale / p.softcap * (2 * kLog2e) : 0;

	// Addresses of a lane for ldmatrix: row r of the lane in a tile of 16, chunk 0 or 1. The
	// chunk pair k of a row is k*32 bytes on, permuted, which exclusive-or keeps.
	const uint32_t q_row = warp * (BM / WARPS) + (lane & 15), q_chunk = lane >> 4;
	const uint32_t k_row = (lane & 7) + (lane >> 4 << 3), k_chunk = lane >> 3 & 1;
	const uint32_t v_row = lane & 15, v_chunk = lane >> 4;

	FlashTiles<BM, BN> tiles(p, seq, i0);
	if (tiles.j >= 0) {
		copy_tile<HD, BM, kWarpThreads>(s_q, (const uint16_t *)p.q + (seq.q0 + i0) * p.q_token + head * p.q_head, p.q_token, seq.q - i0, p.dim);
		copy_k(tiles.j, 0);
		if (STAGES == 2) copy_v(tiles.j, 0);
		cp_commit();
	}
	for (int stage = 0; tiles.j >= 0;) {
		const int j = tiles.j;
		const bool whole = tiles.whole();
		tiles.next();

		cp_wait<0>();
		__syncthreads();
		if (STAGES == 2) { // everybody is done with the other stage
			if (tiles.j >= 0) copy_k(tiles.j, stage ^ 1), copy_v(tiles.j, stage ^ 1);
		} else {
			copy_v(j, 0);
		}
		cp_commit();
		const uint32_t tile_k = s_k + (STAGES == 2 ? stage * kBytesKV : 0), tile_v = s_v + (STAGES == 2 ? stage * kBytesKV : 0);

		float s[MT][NT][4];
#pragma unroll
		for (int i = 0; i < MT; i++)
#pragma unroll
			for (int n = 0; n < NT; n++)
#pragma unroll
				for (int e = 0; e < 4; e++) s[i][n][e] = 0;
#pragma unroll
		for (int kk = 0; kk < HD / 16; kk++) {
			uint32_t a[MT][4];
#pragma unroll
			for (int i = 0; i < MT; i++) ldmatrix(a[i], s_q + i * 16 * HD * 2 + chunk<HD>(q_row, kk * 2 + q_chunk));
#pragma unroll
			for (int n = 0; n < NT / 2; n++) {
				uint32_t b[4];
				ldmatrix(b, tile_k + n * 16 * HD * 2 + chunk<HD>(k_row, kk * 2 + k_chunk));
#pragma unroll
				for (int i = 0; i < MT; i++) {
					mma<T>(s[i][2 * n], a[i], b[0], b[1]);
					mma<T>(s[i][2 * n + 1], a[i], b[2], b[3]);
				}
			}
		}

		if (STAGES == 1) { // everybody is done with the keys
			cp_wait<0>();
			__syncthreads();
			if (tiles.j >= 0) copy_k(tiles.j, 0);
			cp_commit();
		}
		if (p.softcap > 0) {
#pragma unroll
			for (int i = 0; i < MT; i++)
#pragma unroll
				for (int n = 0; n < NT; n++)
#pragma unroll
					for (int e = 0; e < 4; e++) // tanh x = 1 - 2/(e^2x + 1)
						s[i][n][e] = p.softcap - divide_approx(2 * p.softcap, exp2_approx(s[i][n][e] * inner) + 1);
		}
		if (!whole) {
#pragma unroll
			for (int i = 0; i < MT; i++)
#pragma unroll
				for (int h = 0; h < 2; h++) {
					const FlashRow row(p, seq, i0 + warp * (BM / WARPS) + i * 16 + h * 8 + (lane >> 2));
#pragma unroll
					for (int n = 0; n < NT; n++)
#pragma unroll
						for (int e = 0; e < 2; e++)
							if (!row.sees(j + n * 8 + (lane & 3) * 2 + e)) s[i][n][2 * h + e] = -INFINITY;
				}
		}

		// The maximum of this lane's part of each row says whether the warp has to exchange.
		float top[MT][2];
		bool behind = false;
#pragma unroll
		for (int i = 0; i < MT; i++)
#pragma unroll
			for (int h = 0; h < 2; h++) {
				float t = s[i][0][2 * h];
#pragma unroll
				for (int n = 0; n < NT; n++) t = fmaxf(t, fmaxf(s[i][n][2 * h], s[i][n][2 * h + 1]));
				top[i][h] = t;
				behind |= (t - m[i][h]) * log2_scale > kLag; // false for -Inf in both
			}
		if (__any_sync(kFull, behind)) {
#pragma unroll
			for (int i = 0; i < MT; i++)
#pragma unroll
				for (int h = 0; h < 2; h++) {
					float t = fmaxf(top[i][h], m[i][h]);
					t = fmaxf(t, __shfl_xor_sync(kFull, t, 1));
					t = fmaxf(t, __shfl_xor_sync(kFull, t, 2));
					const float f = t == -INFINITY ? 1 : exp2_approx((m[i][h] - t) * log2_scale);
					m[i][h] = t;
					l[i][h] *= f;
#pragma unroll
					for (int d = 0; d < DT; d++) o[i][d][2 * h] *= f, o[i][d][2 * h + 1] *= f;
				}
		}
		float shift[MT][2];
#pragma unroll
		for (int i = 0; i < MT; i++)
#pragma unroll
			for (int h = 0; h < 2; h++) shift[i][h] = m[i][h] == -INFINITY ? 0 : m[i][h] * log2_scale;
		auto exponentials = [&](int from, int to) { // of columns 8*from to 8*to-1
#pragma unroll
			for (int i = 0; i < MT; i++)
#pragma unroll
				for (int n = from; n < to; n++)
#pragma unroll
					for (int e = 0; e < 4; e++) {
						float &x = s[i][n][e];
						x = exp2_approx(__fmaf_rn(x, log2_scale, -shift[i][e / 2]));
						l[i][e / 2] += x;
					}
		};
		if (!kInterleave) exponentials(0, NT);
#pragma unroll
		for (int kk = 0; kk < BN / 16; kk++) {
			if (kInterleave) exponentials(2 * kk, 2 * kk + 2);
			uint32_t a[MT][4];
#pragma unroll
			for (int i = 0; i < MT; i++)
#pragma unroll
				for (int e = 0; e < 4; e++) a[i][e] = T::pack(s[i][2 * kk + e / 2][2 * (e & 1)], s[i][2 * kk + e / 2][2 * (e & 1) + 1]);
#pragma unroll
			for (int d = 0; d < DT / 2; d++) {
				uint32_t b[4];
				ldmatrix_transposed(b, tile_v + kk * 16 * HD * 2 + chunk<HD>(v_row, d * 2 + v_chunk));
#pragma unroll
				for (int i = 0; i < MT; i++) {
					mma<T>(o[i][2 * d], a[i], b[0], b[1]);
					mma<T>(o[i][2 * d + 1], a[i], b[2], b[3]);
				}
			}
		}
		if (STAGES == 2) stage ^= 1;
	}

	// The rows of a warp go through its own part of the queries' tile, to be stored in lines.
	const uint32_t warp_row = warp * (BM / WARPS);
	__syncwarp();
#pragma unroll
	for (int i = 0; i < MT; i++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			l[i][h] += __shfl_xor_sync(kFull, l[i][h], 1);
			l[i][h] += __shfl_xor_sync(kFull, l[i][h], 2);
			const float f = l[i][h] == 0 ? 0 : 1 / l[i][h];
			const uint32_t r = warp_row + i * 16 + h * 8 + (lane >> 2);
#pragma unroll
			for (int d = 0; d < DT; d++) store_shared(s_q + chunk<HD>(r, d) + (lane & 3) * 4, T::pack(o[i][d][2 * h] * f, o[i][d][2 * h + 1] * f));
			if (p.lse && (lane & 3) == 0 && i0 + (int)r < seq.q)
				p.lse[head * p.total_q + seq.q0 + i0 + r] = l[i][h] == 0 ? -INFINITY : m[i][h] * scale + log2_approx(l[i][h]) * kLn2;
		}
	__syncwarp();
	uint16_t *const out = (uint16_t *)p.o + (seq.q0 + i0) * p.o_token + head * p.o_head;
	for (int at = lane; at < BM / WARPS * DT; at += 32) {
		const uint32_t r = warp_row + at / DT, c = at % DT;
		if (i0 + (int)r < seq.q && (int)c * 8 < p.dim) *(uint4 *)(out + r * p.o_token + c * 8) = load_shared(s_q + chunk<HD>(r, c));
	}
}

#define FLASH(type, T, HD, BM, BN, WARPS, STAGES, BLOCKS) \
	extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) flash_sm80_##type##_##HD(const __grid_constant__ FlashParams p) { \
		flash_forward<T, HD, BM, BN, WARPS, STAGES>(p); \
	}

#if defined(FLASH_SMALL_SHARED)
FLASH(f16, F16, 64, 128, 64, 4, 2, 2)
FLASH(f16, F16, 96, 128, 64, 4, 1, 2)
FLASH(f16, F16, 128, 128, 32, 4, 1, 2)
FLASH(f16, F16, 256, 64, 64, 4, 1, 1)
FLASH(bf16, BF16, 64, 128, 64, 4, 2, 2)
FLASH(bf16, BF16, 96, 128, 64, 4, 1, 2)
FLASH(bf16, BF16, 128, 128, 32, 4, 1, 2)
FLASH(bf16, BF16, 256, 64, 64, 4, 1, 1)
#else
FLASH(f16, F16, 64, 128, 128, 4, 2, 2)
FLASH(f16, F16, 96, 128, 64, 4, 2, 2)
FLASH(f16, F16, 128, 128, 64, 4, 1, 2)
FLASH(bf16, BF16, 64, 128, 128, 4, 2, 2)
FLASH(bf16, BF16, 96, 128, 64, 4, 2, 2)
FLASH(bf16, BF16, 128, 128, 64, 4, 1, 2)
#if NF4_ARCH >= 900
FLASH(f16, F16, 256, 64, 64, 4, 1, 2)
FLASH(bf16, BF16, 256, 64, 64, 4, 1, 2)
#else
FLASH(f16, F16, 256, 128, 64, 8, 1, 1)
FLASH(bf16, BF16, 256, 128, 64, 8, 1, 1)
#endif
#endif
#endif
