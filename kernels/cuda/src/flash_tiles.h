// Which keys a tile of queries sees: the sequence it belongs to, the tiles of keys to visit,
// and the mask inside a tile. Nothing here depends on how products are computed.
#pragma once
#include "flash_mma.h"

// One sequence of the batch.
struct FlashSequence {
	int64_t q0, k0; // first token
	int q, k;       // number of queries, of keys

	__device__ __forceinline__ FlashSequence(const FlashParams &p, int b) {
		if (p.q_starts) {
			q0 = p.q_starts[b], q = p.q_starts[b + 1] - p.q_starts[b];
		} else {
			q0 = (int64_t)b * p.max_q, q = p.max_q;
		}
		if (p.k_starts) {
			k0 = p.k_starts[b], k = p.k_starts[b + 1] - p.k_starts[b];
		} else {
			k0 = (int64_t)b * p.max_k, k = p.max_k;
		}
		if (p.k_lens) k = p.k_lens[b];
	}
};

// The tiles of BN keys that queries i0 to i0+BM-1 of a sequence see, the last first: j is
// the first key of the current one, negative at the end.
template <int BM, int BN> struct FlashTiles {
	int j;
	int lo, hi;    // keys that some query sees, masks of blocks aside
	int full_from; // tiles from here to full_to-BN are seen whole by every query
	int full_to;
	const int *first, *at; // of the block list
	int left, block; // tiles left in the current block, tiles of a block

	__device__ __forceinline__ FlashTiles(const FlashParams &p, const FlashSequence &s, int i0) {
		const int shift = s.k - s.q, last = (i0 + BM < s.q ? i0 + BM : s.q) - 1;
		lo = 0, hi = s.k, full_from = 0, full_to = s.k;
		if (p.window_right >= 0) {
			hi = min_of(s.k, last + shift + p.window_right + 1);
			full_to = min_of(s.k, i0 + shift + p.window_right + 1);
		}
		if (p.window_left >= 0) {
			lo = max_of(0, i0 + shift - p.window_left);
			full_from = max_of(0, last + shift - p.window_left);
		}
		first = at = nullptr, left = 0, block = 0;
		if (hi <= lo) {
			j = -1;
			return;
		}
		j = hi - 1 - (hi - 1) % BN;
		if (!p.mask_offsets) return;
		const int row = i0 / p.mask_block_q;
		first = p.mask_cols + p.mask_offsets[row];
		at = p.mask_cols + p.mask_offsets[row + 1];
		block = p.mask_block_k / BN;
		next();
	}

	__device__ __forceinline__ void next() {
		if (!first) {
			j -= BN;
		} else {
			for (;;) {
				if (left == 0) {
					if (at == first) {
						j = -1;
						return;
					}
					at--;
					left = block;
					j = (*at + 1) * block * BN;
				}
				left--;
				j -= BN;
				if (j < hi) break; // what a window hides at the end of a row
			}
		}
		if (j + BN <= lo) j = -1;
	}

	__device__ __forceinline__ bool whole() const { return j >= full_from && j + BN <= full_to; }

	static __device__ __forceinline__ int min_of(int a, int b) { return a < b ? a : b; }
	static __device__ __forceinline__ int max_of(int a, int b) { return a > b ? a : b; }
};

// The keys that one query sees: from to from+count-1.
struct FlashRow {
	int from;
	uint32_t count;

	__device__ __forceinline__ FlashRow(const FlashParams &p, const FlashSequence &s, int i) {
		const int at = i + s.k - s.q;
		int to = s.k;
		from = 0;
		if (p.window_right >= 0 && at + p.window_right + 1 < to) to = at + p.window_right + 1;
		if (p.window_left >= 0 && at - p.window_left > from) from = at - p.window_left;
		count = to > from ? (uint32_t)(to - from) : 0;
	}
	__device__ __forceinline__ bool sees(int j) const { return (uint32_t)(j - from) < count; }
};
