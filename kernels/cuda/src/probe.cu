// Kernels that show what a launch passes on: for the tests of kernels/cuda/driver, no part
// of a conversion.
//
//	probe_axpy(y, x, a, n)         y[i] = a*x[i] + y[i], two roundings
//	probe_smem(out, n)             fills n words of dynamic shared memory, writes them reversed
//	probe_params(out, a, b, c, d, e, s)
//	                               out[0..4] = the scalars, e by its bits; out[5..20] = s
//
// The launch of axpy has any grid and block that cover n; the two others have one block.
#include "common.h"

extern "C" __global__ void probe_axpy(float *y, const float *x, float a, uint32_t n) {
	uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
	if (i < n) y[i] = __fadd_rn(__fmul_rn(a, x[i]), y[i]);
}

extern "C" __global__ void probe_smem(uint32_t *out, uint32_t n) {
	DYNAMIC_SHARED(uint32_t, s);
	for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) s[i] = i * 2654435761u;
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) out[i] = s[n - 1 - i];
}

struct Words16 {
	uint64_t v[16];
};

extern "C" __global__ void probe_params(uint64_t *out, uint8_t a, uint16_t b, uint32_t c, uint64_t d, float e, Words16 s) {
	if (threadIdx.x != 0 || blockIdx.x != 0) return;
	out[0] = a, out[1] = b, out[2] = c, out[3] = d, out[4] = __float_as_uint(e);
	for (int i = 0; i < 16; i++) out[5 + i] = s.v[i];
}
