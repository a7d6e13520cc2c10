/* Modules, functions, launches and tensor maps. */
#include "fakecuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct module {
	device *dev;
	int alive;
	struct module *next;
} module;

typedef struct function {
	module *mod;
	const emu_kernel *kernel;
	int dynamic; /* bytes of shared memory that a launch may ask for */
	int share;
	struct function *next;
} function;

static module *modules;
static function *functions;

/* The emulated kernels are linked where they exist. */
#pragma weak emu_find

static const emu_kernel *find(const char *name)
{
	const emu_kernel *k = emu_find ? emu_find(name) : NULL;
	return k ? k : probe_find(name);
}

static int plausible(const char *image)
{
	static const unsigned char elf[4] = {0x7f, 'E', 'L', 'F'}, fatbin[4] = {0x50, 0xed, 0x55, 0xba};
	if (memcmp(image, elf, 4) == 0 || memcmp(image, fatbin, 4) == 0) return 1;
	return strstr(image, ".version") && strstr(image, ".target");
}

void module_release(const device *d)
{
	for (module *m = modules; m; m = m->next)
		if (m->dev == d && m->alive) {
			m->alive = 0;
			live_modules--;
			leaks++;
		}
}

API cuModuleLoadData(module **to, const void *image)
{
	BEGIN;
	if (!plausible(image)) return INVALID_IMAGE;
	module *m = calloc(1, sizeof *m);
	*m = (module){c->dev, 1, modules};
	modules = m;
	live_modules++;
	*to = m;
	return OK;
}

API cuModuleUnload(module *m)
{
	BEGIN;
	if (!m || !m->alive || m->dev != c->dev) return violation("cuModuleUnload: not a module of device %d", c->dev->index), INVALID_HANDLE;
	stream_drain(m->dev);
	m->alive = 0;
	live_modules--;
	return OK;
}

API cuModuleGetFunction(function **to, module *m, const char *name)
{
	BEGIN;
	if (!m || !m->alive || m->dev != c->dev) return violation("cuModuleGetFunction: not a module of device %d", c->dev->index), INVALID_HANDLE;
	const emu_kernel *k = find(name);
	if (!k) return NOT_FOUND;
	for (function *f = functions; f; f = f->next)
		if (f->mod == m && f->kernel == k) return *to = f, OK;
	function *f = calloc(1, sizeof *f);
	*f = (function){m, k, DEFAULT_SHARED, -1, functions};
	functions = f;
	*to = f;
	return OK;
}

#define FUNCTION(f) if (!f || !f->mod->alive || f->mod->dev != c->dev) return violation("%s: not a function of device %d", __func__, c->dev->index), INVALID_HANDLE

API cuFuncGetAttribute(int *v, int attribute, function *f)
{
	BEGIN;
	FUNCTION(f);
	switch (attribute) {
	case 0: *v = 1024; break;
	case 1: case 2: case 3: *v = 0; break;
	case 4: *v = 32; break;
	case 8: *v = f->dynamic; break;
	case 9: *v = f->share; break;
	default: return INVALID_VALUE;
	}
	return OK;
}

API cuFuncSetAttribute(function *f, int attribute, int v)
{
	BEGIN;
	FUNCTION(f);
	if (attribute == 8 && v >= 0 && v <= MAX_SHARED) return f->dynamic = v, OK;
	if (attribute == 9 && v >= -1 && v <= 100) return f->share = v, OK;
	return INVALID_VALUE;
}

/* Natural alignment; a tensor map has 64. */
static size_t alignment(size_t size)
{
	if (size == 128) return 8; /* a structure or a tensor map: at least this */
	return size % 8 == 0 ? 8 : size % 4 == 0 ? 4 : size % 2 == 0 ? 2 : 1;
}

#ifndef FAKECUDA_OLD
API cuFuncGetParamInfo(function *f, size_t i, size_t *offset, size_t *size)
{
	BEGIN;
	FUNCTION(f);
	if (i >= (size_t)f->kernel->nargs) return INVALID_VALUE;
	size_t at = 0;
	for (size_t j = 0; j <= i; j++) {
		size_t a = alignment(f->kernel->sizes[j]);
		at = (at + a - 1) / a * a;
		*offset = at;
		at += *size = f->kernel->sizes[j];
	}
	return OK;
}

API cuTensorMapEncodeTiled(void *map, int type, unsigned rank, CUdeviceptr address, const uint64_t *dims, const uint64_t *strides,
	const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill)
{
	BEGIN;
	if ((uintptr_t)map % 64) return violation("cuTensorMapEncodeTiled: the map is not at a multiple of 64");
	if (rank < 1 || rank > 5 || address % 16 || type < 0 || type > 12 || fill > 1) return INVALID_VALUE;
	uint64_t words[16] = {address, type, rank, interleave, swizzle, promotion, fill};
	for (unsigned i = 0; i < rank; i++) {
		if (!dims[i] || dims[i] > (uint64_t)1 << 32 || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8) return INVALID_VALUE;
		if (i && strides[i - 1] % 16) return INVALID_VALUE;
		words[7 + i] = dims[i] << 16 | box[i] << 4 | steps[i];
		if (i) words[11 + i] = strides[i - 1];
	}
	memcpy(map, words, sizeof words);
	return OK;
}
#endif

API cuLaunchKernel(function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
	unsigned shared, stream *s, void **params, void **extra)
{
	BEGIN_ASYNC;
	FUNCTION(f);
	if (extra) return NOT_SUPPORTED;
	if (!gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffff || gy > 65535 || gz > 65535) return INVALID_VALUE;
	if (bx > 1024 || by > 1024 || bz > 64 || (uint64_t)bx * by * bz > 1024) return INVALID_VALUE;
	if (shared > (unsigned)f->dynamic) return INVALID_VALUE;
	const emu_kernel *k = f->kernel;
	size_t bytes = k->nargs * sizeof(void *);
	for (int i = 0; i < k->nargs; i++) bytes += k->sizes[i] + 64;
	char *copy = aligned_alloc(64, (bytes + 127) / 64 * 64), *at = copy + k->nargs * sizeof(void *);
	void **args = (void **)copy;
	for (int i = 0; i < k->nargs; i++) {
		if (!params[i] || (uintptr_t)params[i] % alignment(k->sizes[i])) {
			free(copy);
			return violation("cuLaunchKernel: %s: argument %d of %zu bytes is at %p", k->name, i, k->sizes[i], params[i]);
		}
		at = (char *)(((uintptr_t)at + 63) & ~(uintptr_t)63);
		args[i] = memcpy(at, params[i], k->sizes[i]);
		at += k->sizes[i];
	}
	launches++;
	return stream_add(s ? s : stream_default(c), c, (op){.kind = LAUNCH, .kernel = k, .grid = {gx, gy, gz}, .block = {bx, by, bz}, .size = shared, .args = args, .owned = copy}, fault);
}
