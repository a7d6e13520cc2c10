// Kernels with a planted bug each, to see that the emulator finds it.
//
//	planted NAME       runs the kernel under four orders and prints what it computed
#include <stdio.h>
#include <stdlib.h>

#include "../runtime.h"

static const uint32_t kFull = 0xffffffffu;
static uint32_t out[64];

// A barrier is missing between writing and reading.
static void race() {
	DYNAMIC_SHARED(uint32_t, s);
	s[threadIdx.x] = threadIdx.x;
	out[threadIdx.x] = s[63 - threadIdx.x];
}

// The same with the barrier.
static void sound() {
	DYNAMIC_SHARED(uint32_t, s);
	s[threadIdx.x] = threadIdx.x;
	__syncthreads();
	out[threadIdx.x] = s[63 - threadIdx.x];
}

static void divergent() {
	if (threadIdx.x % 2)
		out[threadIdx.x] = __shfl_sync(kFull, threadIdx.x, 0);
	else
		out[threadIdx.x] = __shfl_xor_sync(kFull, threadIdx.x, 1);
}

static void left() {
	if (threadIdx.x == 5) return;
	out[threadIdx.x] = __shfl_sync(kFull, threadIdx.x, 0);
}

// One warp waits at a barrier, a part of the other in a collective that needs all of it.
static void stuck() {
	if (threadIdx.x == 40) __syncthreads();
	out[threadIdx.x] = __shfl_sync(kFull, threadIdx.x, 0);
	__syncthreads();
}

static void partial() { out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, 0); }

static void overrun() {
	DYNAMIC_SHARED(uint32_t, s);
	s[threadIdx.x + 1] = 1; // 64 words are there
	__syncthreads();
	out[threadIdx.x] = s[0];
}

static void misaligned() {
	DYNAMIC_SHARED(unsigned char, s);
	volatile uint4 *p = (uint4 *)(s + 4);
	p->x = threadIdx.x;
}

int main(int argc, char **argv) {
	const struct {
		const char *name;
		void (*kernel)();
	} all[] = {{"race", race}, {"sound", sound}, {"divergent", divergent}, {"left", left}, {"stuck", stuck}, {"partial", partial}, {"overrun", overrun}, {"misaligned", misaligned}};
	for (const auto &k : all) {
		if (argc != 2 || strcmp(argv[1], k.name) != 0) continue;
		for (unsigned order = 0; order < 4; order++) {
			emu_order(order);
			emu::launch({1, 1, 1}, {64, 1, 1}, 64 * 4, k.kernel);
			uint32_t sum = 0;
			for (int i = 0; i < 64; i++) sum = sum * 31 + out[i];
			printf("%08x\n", sum);
		}
		return 0;
	}
	fprintf(stderr, "planted: no such kernel\n");
	return 2;
}
