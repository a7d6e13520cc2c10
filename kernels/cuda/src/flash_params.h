// The contract of the FlashAttention kernels: what they compute, and the block of parameters
// that a launch passes by value. The definition is that of package flash (kernels/flash):
//
// Query token i of a sequence with Sq queries and Sk keys stands at position
// p = i + Sk - Sq (bottom-right aligned). Query head h reads key head h/(q_heads/kv_heads).
//
//	x_j = scale * <q, k_j>
//	x_j = softcap * tanh(x_j / softcap)              if softcap is not 0
//	j is visible if   0 <= j < Sk
//	                  j >= p - window_left           if window_left is not negative
//	                  j <= p + window_right          if window_right is not negative
//	                  the block mask has (i/mask_block_q, j/mask_block_k), if there is one
//	o   = sum over visible j of exp(x_j)/z * v_j     z = sum over visible j of exp(x_j)
//	lse = ln z
//
// Causal attention is window_right = 0; the host folds it in. A query that sees no key
// gives o = 0 (all bits) and lse = -Inf. NaN in a query, or in a key or value that it sees,
// gives NaN. Values of keys of the sequence that a mask hides may be multiplied by zero, so
// they have to be finite; what lies between the end of a sequence's keys (k_lens) and the
// next start may be read, and has to be finite as well.
//
// Products and sums are float32, of operands in the storage format (binary16 or bfloat16);
// unnormalised probabilities are at most 256 and rounded to the storage format for the
// second product, not for z. o is rounded once. Bits depend on the kernel, shapes and masks, and
// never on the order in which blocks run.
//
// # Layout
//
// Element x of head h of token t of q is number t*q_token + h*q_head + x, and so on: packed
// [total, heads, dim], batched [B, S, H, D] (sequences of equal length) and, as one sequence
// with B*H heads, [B, H, S, D]. Base pointers are multiples of 16 bytes, strides multiples of
// 8 elements. dim is a multiple of 8, at most the dimension in the kernel's name: what is
// missing counts as zero, is neither read nor written. o does not overlap the inputs.
//
// # Block mask
//
// A compressed list of the blocks that exist, for all heads and sequences, counted from the
// start of a sequence: block row r has the columns mask_cols[mask_offsets[r]] to
// mask_cols[mask_offsets[r+1]-1], ascending. The mask covers max_q and max_k. Its blocks are
// multiples of 128 in both directions, so that every kernel tile lies in one block.
//
// # Kernels
//
//	flash_sm80_{f16,bf16}_{64,96,128,256}  (FlashParams)   flash_sm80.cu; 8.0 and newer
//
// The file says what grid, block and dynamic shared memory it is launched with.
#pragma once
#include <stdint.h>

struct FlashParams {
	const void *q, *k, *v;
	void *o;
	float *lse; // [q_heads, total_q], natural logarithm; null: not wanted

	// First token of each sequence and, at the end, the total ("cu_seqlens"): sequences+1
	// numbers. Null: sequence b starts at b*max_q (b*max_k) and has max_q queries (max_k keys).
	const int32_t *q_starts, *k_starts;
	const int32_t *k_lens; // keys of each sequence, the rest up to the next start is padding; null: all

	const int32_t *mask_offsets, *mask_cols; // null: no block mask

	uint32_t *counter; // of tiles handed out, for persistent kernels; 0 before the launch

	// Strides in elements.
	int64_t q_token, q_head, k_token, k_head, v_token, v_head, o_token, o_head;
	int64_t total_q; // query tokens, the row length of lse

	int32_t sequences;
	int32_t max_q, max_k; // longest sequence
	int32_t q_heads, kv_heads;
	int32_t dim;
	int32_t window_left, window_right; // -1: no limit
	int32_t mask_block_q, mask_block_k;
	float scale;   // positive
	float softcap; // 0: none
};
static_assert(sizeof(FlashParams) == 208, "the host packs FlashParams field by field");
