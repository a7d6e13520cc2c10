// The code books of NF4 and FP4 (package nf4 derives them; the tests hold these constants
// against it) and their lookup in the lanes of a warp.
//
// A code book cuts the line into 32 cells that are evenly wide and hold at most one
// threshold each; lane l keeps the threshold of cell l and the codes on both sides of it.
// The cell of v comes from one fused multiply-add, the low bits of which are an integer.
// As the cell is a monotone function of v, and the table was filled by the same function
// of the thresholds, comparing with the cell's own threshold is exact: every threshold in
// a lower cell is below v, every one in a higher cell above. That no two share a cell is
// asserted when this is compiled.
#pragma once
#include "common.h"

struct alignas(8) Cell {
	float threshold;
	uint32_t codes;
};

struct Cells {
	Cell cell[32];
	bool separate; // no cell was needed twice
};

// The integer that the lookup's rounding to nearest even finds for x >= 0.
constexpr uint32_t nearest(double x) {
	uint32_t i = (uint32_t)x;
	double rest = x - i;
	return i + (rest > 0.5 || (rest == 0.5 && i % 2 == 1) ? 1u : 0u);
}

constexpr float kInfinity = __builtin_huge_valf();

// --- NF4: levels ascend, the code is the rank.

static __device__ constexpr float kNF4Threshold[15] = {
	-0x1.b239bp-1f, -0x1.38a4ep-1f, -0x1.d709p-2f, -0x1.5bd4ecp-2f, -0x1.e079d8p-3f, -0x1.1a7178p-3f, -0x1.74f0e2p-5f,
	0x1.45f5fep-5f, 0x1.ec90c4p-4f, 0x1.a0cfcp-3f, 0x1.2b05a8p-2f, 0x1.8ea7f2p-2f, 0x1.00da08p-1f, 0x1.491b5ep-1f, 0x1.b913b4p-1f};

// 15 cells a unit, cell 16 around zero: 1 to 31 for |v| <= 1.
constexpr float kNF4Scale = 15.0f, kNF4Origin = 8388608.0f + 16;

constexpr Cells nf4_cells() {
	Cells t{};
	t.separate = true;
	uint32_t rank = 0;
	for (uint32_t c = 0; c < 32; c++) {
		t.cell[c] = Cell{kInfinity, rank};
		uint32_t in = 0;
		for (int i = 0; i < 15; i++)
			if (nearest(double(kNF4Threshold[i]) * kNF4Scale + 16) == c) {
				t.cell[c].threshold = kNF4Threshold[i];
				in++;
			}
		rank += in;
		t.separate = t.separate && in <= 1;
	}
	t.separate = t.separate && rank == 15;
	return t;
}
static_assert(nf4_cells().separate, "two thresholds of NF4 share a cell");

// --- FP4: bits s e e m; zero has two codes, 0 for v <= 0 and 8 above.

// Positive thresholds, ascending; the negative ones mirror them, and there is one at zero.
static __device__ constexpr float kFP4Threshold[7] = {
	0x1.555556p-9f, 0x1.6p-4f, 0x1.aaaaacp-3f, 0x1.2aaaacp-2f, 0x1.aaaaacp-2f, 0x1.2aaaacp-1f, 0x1.aaaaacp-1f};
constexpr uint8_t kFP4Positive[8] = {8, 1, 6, 7, 4, 5, 2, 3}; // by magnitude
constexpr uint8_t kFP4Negative[8] = {0, 9, 14, 15, 12, 13, 10, 11};

// 14 cells a unit of magnitude, 0 to 14 for v > 0, 16 to 30 else. Cell 31 is what the
// all-ones bits of an arithmetic NaN select: the highest rank.
constexpr float kFP4Scale = 14.0f, kFP4Above = 8388608.0f, kFP4Below = 8388608.0f + 16;

constexpr Cells fp4_cells() {
	Cells t{};
	t.separate = true;
	for (uint32_t side = 0; side < 2; side++) {
		const uint8_t *code = side ? kFP4Negative : kFP4Positive;
		uint32_t k = 0;
		for (uint32_t c = 0; c < 16; c++) {
			Cell &cell = t.cell[16 * side + c];
			cell = Cell{kInfinity, code[k] * 0x11u};
			uint32_t in = 0;
			for (int i = 0; i < 7; i++)
				if (nearest(double(kFP4Threshold[i]) * kFP4Scale) == c) {
					// Ties go down, so below zero a magnitude equal to the threshold is beyond
					// it: the comparison is with the float before.
					cell.threshold = side ? float(double(kFP4Threshold[i]) * (1 - 0x1p-24)) : kFP4Threshold[i];
					cell.codes = code[i] | (uint32_t)code[i + 1] << 4;
					in++;
				}
			k += in;
			t.separate = t.separate && in <= 1;
		}
		t.separate = t.separate && k == 7;
	}
	t.separate = t.separate && nearest(kFP4Scale) < 15;
	t.cell[31] = Cell{kInfinity, kFP4Positive[7] * 0x11u};
	return t;
}
static_assert(fp4_cells().separate, "two thresholds of FP4 share a cell");

// Of external linkage: internal names hold a hash of the source's path, and images must
// not depend on where they are built.
extern __device__ const Cells d_nf4_cells;
extern __device__ const Cells d_fp4_cells;
extern __device__ const float d_nf4_level[16];
extern __device__ const float d_fp4_level[16];
__device__ const Cells d_nf4_cells = nf4_cells();
__device__ const Cells d_fp4_cells = fp4_cells();
__device__ const float d_nf4_level[16] = {
	-0x1p+0f, -0x1.647362p-1f, -0x1.0cd66p-1f, -0x1.94654p-2f, -0x1.23449ap-2f, -0x1.7a6a7ep-3f, -0x1.74f0e2p-4f, 0.0f,
	0x1.45f5fep-4f, 0x1.4995c6p-3f, 0x1.f809bap-3f, 0x1.5a0674p-2f, 0x1.c3497p-2f, 0x1.200f56p-1f, 0x1.722766p-1f, 0x1p+0f};
__device__ const float d_fp4_level[16] = {
	0.0f, 0x1.555556p-8f, 0x1.555556p-1f, 1.0f, 0x1.555556p-2f, 0.5f, 0x1.555556p-3f, 0.25f,
	0.0f, -0x1.555556p-8f, -0x1.555556p-1f, -1.0f, -0x1.555556p-2f, -0.5f, -0x1.555556p-3f, -0.25f};

// A code book in the lanes of a warp; all lanes call put together. It adds the code of v,
// at the bit shift, to word.
struct NF4 {
	float threshold;
	uint32_t rank;
	static constexpr uint32_t kZero = 7; // the code of 0.0

	__device__ __forceinline__ NF4() {
		const Cell c = d_nf4_cells.cell[threadIdx.x & 31];
		threshold = c.threshold, rank = c.codes;
	}
	// A NaN selects cell 31, which has rank 15 and no threshold.
	__device__ __forceinline__ void put(uint32_t &word, float v, uint32_t shift) const {
		uint32_t c = __float_as_uint(__fmaf_rn(v, kNF4Scale, kNF4Origin));
		float t = __shfl_sync(kFull, threshold, (int)c);
		word += __shfl_sync(kFull, rank, (int)c) << shift;
		if (v > t) word += 1u << shift;
	}
	// The same by the definition, for a thread on its own.
	static __device__ __forceinline__ uint32_t code_alone(float v) {
		uint32_t r = 0;
#pragma unroll
		for (int i = 0; i < 15; i++) r += !(v <= kNF4Threshold[i]);
		return r;
	}
	static __device__ __forceinline__ float level(uint32_t code) { return d_nf4_level[code]; }
};

struct FP4 {
	float threshold;
	uint32_t codes;
	static constexpr uint32_t kZero = 0;

	__device__ __forceinline__ FP4() {
		const Cell c = d_fp4_cells.cell[threadIdx.x & 31];
		threshold = c.threshold, codes = c.codes;
	}
	__device__ __forceinline__ void put(uint32_t &word, float v, uint32_t shift) const {
		float m = fabsf(v);
		uint32_t c = __float_as_uint(__fmaf_rn(m, kFP4Scale, v > 0 ? kFP4Above : kFP4Below));
		float t = __shfl_sync(kFull, threshold, (int)c);
		uint32_t two = __shfl_sync(kFull, codes, (int)c);
		word += ((m > t ? two >> 4 : two) & 15) << shift;
	}
	static __device__ __forceinline__ uint32_t code_alone(float v) {
		uint32_t above = 0, below = 0; // thresholds passed on either side of zero
#pragma unroll
		for (int i = 0; i < 7; i++) {
			above += !(v <= kFP4Threshold[i]);
			below += v <= -kFP4Threshold[i];
		}
		// Nibbles of kFP4Positive and kFP4Negative.
		return (v <= 0 ? 0xbadcfe90u >> 4 * below : 0x32547618u >> 4 * above) & 15;
	}
	static __device__ __forceinline__ float level(uint32_t code) { return d_fp4_level[code]; }
};
