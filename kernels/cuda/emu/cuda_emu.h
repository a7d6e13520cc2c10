// The CUDA dialect of ../src as C++, one fiber per CUDA thread.
//
// A block runs on the OS thread that launches it. Its threads are fibers that give way in
// warp collectives and barriers only, in an order that can be chosen: a result that
// depends on the order is a race. Collectives are for all 32 lanes of a warp; the
// emulator aborts when lanes meet in different ones, when a lane has left the kernel, and
// when no thread can go on. Dynamic shared memory is an exactly large heap block, so that
// AddressSanitizer sees overruns.
//
// Arithmetic is that of the device: NaN results of the fused multiply-add and of
// roundings have the device's bits, other NaN results the host's.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <vector>

#ifndef NF4_ARCH
#define NF4_ARCH 900
#endif

#define __global__
#define __device__
#define __constant__ const
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ static thread_local
#define DYNAMIC_SHARED(T, name) T *name = (T *)emu::current->block->smem

namespace emu {
struct Dim { unsigned x, y, z; };

constexpr size_t kOperand = 32; // bytes of the largest operand of a collective
typedef unsigned char Operands[32][kOperand];

struct Warp {
	Operands slot[2]; // of this collective and of the next
	const char *op;               // the collective that lanes wait in
	unsigned arrived, lanes, exited;
	uint64_t epoch; // completed collectives
};

struct Block {
	Dim index, dim, grid;
	unsigned char *smem;
	unsigned threads, arrived, exited;
	uint64_t epoch; // completed barriers
};

// Copy is one that a thread has started and not waited for.
struct Copy {
	unsigned char *dst;
	const void *src; // nullptr: zeros
	unsigned group;
};

struct Thread {
	Dim index;
	unsigned lane;
	bool done;
	Warp *warp;
	Block *block;
	const uint64_t *waits_for; // when set, blocked while it has the value below
	uint64_t waits_while;
	void *sp, *stack, *fake;
	std::vector<Copy> copies;
	unsigned group; // of the next copy
};

extern thread_local Thread *current;

// Starts a collective with this lane's operand and returns the operands of all lanes.
const Operands &collective(const char *op, const void *operand, size_t n);
void barrier();
[[noreturn]] void die(const char *what);

template <class T> inline T exchange(const char *op, T v, unsigned lane) {
	static_assert(sizeof(T) <= kOperand, "an operand of a collective that is too large");
	memcpy(&v, collective(op, &v, sizeof v)[lane & 31], sizeof v);
	return v;
}
} // namespace emu

#define threadIdx (emu::current->index)
#define blockIdx (emu::current->block->index)
#define blockDim (emu::current->block->dim)
#define gridDim (emu::current->block->grid)

struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }

static inline void __syncthreads() { emu::barrier(); }
static inline void full_mask(unsigned m) {
	if (m != ~0u) emu::die("a collective of a part of a warp");
}
static inline void __syncwarp() { emu::collective("syncwarp", nullptr, 0); }
static inline int __any_sync(unsigned m, int v) {
	full_mask(m);
	const emu::Operands &all = emu::collective("vote", &v, sizeof v);
	bool any = false;
	for (unsigned i = 0; i < 32; i++) {
		memcpy(&v, all[i], sizeof v);
		any |= v != 0;
	}
	return any;
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int lane) {
	full_mask(m);
	return emu::exchange("shfl", v, (unsigned)lane);
}
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int x) {
	full_mask(m);
	return emu::exchange("shfl.bfly", v, emu::current->lane ^ (unsigned)x);
}
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned d) {
	full_mask(m);
	unsigned from = emu::current->lane + d;
	return emu::exchange("shfl.down", v, from < 32 ? from : emu::current->lane);
}

template <class T> static inline T atomic_min_max(T *p, T v, bool least) {
	T old = __atomic_load_n(p, __ATOMIC_RELAXED);
	while ((least ? v < old : v > old) && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
	}
	return old;
}
template <class T> static inline T atomicMax(T *p, T v) { return atomic_min_max(p, v, false); }
template <class T> static inline T atomicMin(T *p, T v) { return atomic_min_max(p, v, true); }

static inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz((unsigned)v); }

static inline float __uint_as_float(uint32_t u) {
	float f;
	memcpy(&f, &u, 4);
	return f;
}
static inline uint32_t __float_as_uint(float f) {
	uint32_t u;
	memcpy(&u, &f, 4);
	return u;
}
static inline float __fmaf_rn(float a, float b, float c) {
	float r = fmaf(a, b, c);
	return r == r ? r : __uint_as_float(0x7fffffffu);
}
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __ull2double_rn(unsigned long long v) { return (double)v; }
static inline float __double2float_rn(double v) { return (float)v; }

static inline uint32_t max_u16x2(uint32_t a, uint32_t b) {
	return max(a >> 16, b >> 16) << 16 | max(a & 0xffff, b & 0xffff);
}

// Binary16 by integer arithmetic and exact products and sums of float32.
static inline float cvt_f32(uint32_t h) {
	uint32_t sign = (h & 0x8000u) << 16, m = h & 0x7fffu;
	if (m > 0x7c00) return __uint_as_float(0x7fffffffu);
	if (m == 0x7c00) return __uint_as_float(sign | 0x7f800000u);
	return __uint_as_float(sign | m << 13) * 0x1p112f;
}
static inline uint32_t cvt_f16(float v) {
	uint32_t b = __float_as_uint(v), sign = b >> 16 & 0x8000u;
	b &= 0x7fffffffu;
	if (b > 0x7f800000u) return 0x7fffu;
	if (b >= 0x477ff000u) return sign | 0x7c00u;
	// Below 2^-14, the sum rounds to a multiple of the least subnormal, 2^-24.
	if (b < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(b) + 0.5f) - 0x3f000000u);
	return sign | (b - 0x38000000u + 0xfffu + (b >> 13 & 1)) >> 13;
}
static inline uint32_t cvt_bf16(float v) {
	uint32_t b = __float_as_uint(v);
	return v != v ? 0x7fffu : (b + 0x7fffu + (b >> 16 & 1)) >> 16;
}
static inline uint32_t pack_f16x2(float lo, float hi) { return cvt_f16(lo) | cvt_f16(hi) << 16; }
static inline uint32_t pack_bf16x2(float lo, float hi) { return cvt_bf16(lo) | cvt_bf16(hi) << 16; }
