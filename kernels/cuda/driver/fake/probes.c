/* The kernels of the conformance suite, as plain C; kernels/cuda/src/probe.cu has them for a GPU. */
#include "fakecuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARG(type, i) (*(type *)args[i])

/* y[i] += a * x[i] for i < n, one thread for each i */
static void axpy(emu_dim grid, emu_dim block, size_t smem, void **args)
{
	(void)smem;
	float *y = ARG(float *, 0);
	const float *x = ARG(const float *, 1);
	float a = ARG(float, 2);
	uint32_t n = ARG(uint32_t, 3);
	for (uint64_t i = 0; i < (uint64_t)grid.x * block.x && i < n; i++) {
		float product = a * x[i];
		y[i] += product;
	}
}

/* s[i] = i * 2654435761 in n words of dynamic shared memory, out[i] = s[n-1-i]; one block */
static void shared(emu_dim grid, emu_dim block, size_t smem, void **args)
{
	(void)grid, (void)block;
	uint32_t *out = ARG(uint32_t *, 0), n = ARG(uint32_t, 1);
	uint32_t *s = malloc(smem ? smem : 1);
	if (smem < (size_t)n * 4) {
		violation("probe_smem: %zu bytes of shared memory for %u words", smem, n);
		n = (uint32_t)(smem / 4);
	}
	for (uint32_t i = 0; i < n; i++) s[i] = i * 2654435761u;
	for (uint32_t i = 0; i < n; i++) out[i] = s[n - 1 - i];
	free(s);
}

typedef struct { uint64_t v[16]; } sixteen;

/* out[0..4] = a, b, c, d, the bits of e; out[5..20] = v */
static void params(emu_dim grid, emu_dim block, size_t smem, void **args)
{
	(void)grid, (void)block, (void)smem;
	uint64_t *out = ARG(uint64_t *, 0);
	uint32_t e;
	out[0] = ARG(uint8_t, 1);
	out[1] = ARG(uint16_t, 2);
	out[2] = ARG(uint32_t, 3);
	out[3] = ARG(uint64_t, 4);
	memcpy(&e, args[5], 4);
	out[4] = e;
	memcpy(out + 5, args[6], sizeof(sixteen));
}

static const size_t axpy_sizes[] = {8, 8, 4, 4}, shared_sizes[] = {8, 4}, params_sizes[] = {8, 1, 2, 4, 8, 4, sizeof(sixteen)};
static const emu_kernel kernels[] = {
	{"probe_axpy", 4, axpy_sizes, axpy},
	{"probe_smem", 2, shared_sizes, shared},
	{"probe_params", 7, params_sizes, params},
};

const emu_kernel *probe_find(const char *name)
{
	for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
		if (strcmp(kernels[i].name, name) == 0) return &kernels[i];
	return NULL;
}
