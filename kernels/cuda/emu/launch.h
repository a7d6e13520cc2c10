// Launching the kernels of ../src on the host. The functions are thread-safe: several
// threads may launch at once. A launch returns when it is done.
#pragma once
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
	unsigned x, y, z;
} emu_dim;

typedef struct {
	const char *name;
	int nargs;
	const size_t *sizes; // of each argument, in bytes
	void (*run)(emu_dim grid, emu_dim block, size_t smem, void **args); // args[i] points to argument i
} emu_kernel;

// The kernel of that name; NULL when there is none.
const emu_kernel *emu_find(const char *name);

// The order in which the calling thread runs blocks and threads from here on: 0 ascending,
// 1 descending, larger ones shuffled. Results must not depend on it.
void emu_order(unsigned seed);

#ifdef __cplusplus
}
#endif
