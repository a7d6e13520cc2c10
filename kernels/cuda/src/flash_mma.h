// What the FlashAttention kernel for 8.0 and newer needs of the machine: asynchronous copies
// into shared memory, matrix loads and products of a warp. Shared memory is addressed by
// bytes in its own window, as the instructions do.
#pragma once
#include "common.h"
#include "flash_params.h"

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

#if defined(NF4_EMU)
#include "../emu/mma_emu.h"
#else

static __device__ __forceinline__ uint32_t shared_base() {
	DYNAMIC_SHARED(unsigned char, smem);
	return (uint32_t)__cvta_generic_to_shared(smem);
}

// Copies 16 bytes, or zeroes them when there is no source. Done when cp_wait says so.
static __device__ __forceinline__ void cp_async16(uint32_t dst, const void *src, bool exists) {
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(exists ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most n of this thread's groups are under way.
template <int n> static __device__ __forceinline__ void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory"); }

// Four 8x8 matrices of 16-bit elements; lane i has the address of row i%8 of matrix i/8.
static __device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t row) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
static __device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], uint32_t row) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// c += a * b: 16x16 by 16x8, float32 sums. Lane 4g+t has rows g and g+8 of c, columns 2t and 2t+1.
template <class T> static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> __device__ __forceinline__ void mma<F16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		: "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void mma<BF16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		: "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void store_shared(uint32_t dst, uint32_t v) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(dst), "r"(v) : "memory"); }
static __device__ __forceinline__ uint4 load_shared(uint32_t src) {
	uint4 v;
	asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(src) : "memory");
	return v;
}

// 2^x, relative error 2^-22, subnormals flushed.
static __device__ __forceinline__ float exp2_approx(float x) {
	float r;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
	return r;
}
static __device__ __forceinline__ float log2_approx(float x) { return __log2f(x); }
static __device__ __forceinline__ float divide_approx(float a, float b) { return __fdividef(a, b); }
#endif
