/* Device and page-locked memory: one address range for each device and one for the host. */
#include "fakecuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

enum { PAGE = 4096, ALIGN = 256, CANARY = 0xa5, FRESH = 0xff, FILL_WHOLE = 16 << 20, FILL_END = 1 << 20 };

/* Addresses of one range; they are handed out once, so that a freed pointer stays wrong. */
typedef struct { unsigned char *base; size_t size, used; } range;
static range ranges[MAX_DEVICES + 1]; /* the last one is of the host */

typedef struct block {
	unsigned char *p, *start; /* what the caller has, what is mapped */
	size_t size, mapped;
	device *dev;
	int host;
	struct block *next;
} block;
static block *blocks;

static size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static range *range_of(int i)
{
	range *r = &ranges[i];
	for (size_t size = (size_t)1 << 36; !r->base && size >= (size_t)1 << 30; size /= 4) {
		void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p != MAP_FAILED) *r = (range){p, size, 0};
	}
	return r;
}

static int inside(const range *r, uint64_t p) { return r->base && p >= (uint64_t)r->base && p < (uint64_t)r->base + r->size; }

static void damaged(const block *b)
{
	const unsigned char *end = b->start + b->mapped;
	UNPOISON(b->p + b->size, end - (b->p + b->size));
	for (const unsigned char *q = b->p + b->size; q < end; q++)
		if (*q != CANARY) {
			violation("byte %zd behind %zu bytes of %s memory was written", q - (b->p + b->size) + 1, b->size, b->host ? "host" : "device");
			memset(b->p + b->size, CANARY, end - (b->p + b->size));
			break;
		}
	POISON(b->p + b->size, end - (b->p + b->size));
}

static void *take(device *d, size_t size, int host)
{
	range *r = range_of(host ? MAX_DEVICES : d->index);
	size_t mapped = up(size, PAGE);
	if (!r->base || r->size - r->used < mapped + PAGE) return NULL;
	unsigned char *start = r->base + r->used;
	if (mprotect(start, mapped, PROT_READ | PROT_WRITE)) return NULL;
	r->used += mapped + PAGE;
	block *b = calloc(1, sizeof *b);
	/* Device memory ends at the page without access, host memory starts a page, as callers expect. */
	*b = (block){host ? start : start + mapped - up(size, ALIGN), start, size, mapped, d, host, blocks};
	blocks = b;
	if (size <= FILL_WHOLE) {
		memset(b->p, FRESH, size);
	} else {
		memset(b->p, FRESH, FILL_END);
		memset(b->p + size - FILL_END, FRESH, FILL_END);
	}
	memset(b->p + size, CANARY, start + mapped - (b->p + size));
	POISON(b->p + size, start + mapped - (b->p + size));
	if (host) {
		live_host++;
	} else {
		live_memory++;
		d->used += size;
	}
	return b->p;
}

static void give(block **at)
{
	block *b = *at;
	*at = b->next;
	damaged(b);
	UNPOISON(b->start, b->mapped);
	/* Mapping anew gives the memory back to the system and takes the access away. */
	if (mmap(b->start, b->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) abort();
	if (b->host) {
		live_host--;
	} else {
		live_memory--;
		b->dev->used -= b->size;
	}
	free(b);
}

static block **find(uint64_t p, int host)
{
	for (block **at = &blocks; *at; at = &(*at)->next)
		if ((*at)->host == host && (uint64_t)(*at)->p == p) return at;
	return NULL;
}

/* Whose memory p is, for messages. */
static const char *describe(uint64_t p)
{
	static char text[64];
	for (int i = 0; i < MAX_DEVICES; i++)
		if (inside(&ranges[i], p)) {
			snprintf(text, sizeof text, "freed, or past the end of an allocation, on device %d", i);
			for (block *b = blocks; b; b = b->next)
				if (!b->host && p >= (uint64_t)b->p && p < (uint64_t)b->p + b->size) snprintf(text, sizeof text, "memory of device %d", i);
			return text;
		}
	return inside(&ranges[MAX_DEVICES], p) ? "page-locked host memory" : "a host pointer or nothing";
}

int memory_holds(const device *d, uint64_t p, uint64_t size, const char *call)
{
	for (block *b = blocks; b; b = b->next) {
		uint64_t at = (uint64_t)b->p;
		if (b->host || p < at || p >= at + b->size) continue;
		if (b->dev == d && size <= at + b->size - p) return 1;
		if (b->dev != d) break;
		violation("%s: %llu bytes at offset %llu of an allocation of %zu", call, (unsigned long long)size, (unsigned long long)(p - at), b->size);
		return 0;
	}
	violation("%s on device %d: 0x%llx is no memory of it: %s", call, d->index, (unsigned long long)p, describe(p));
	return 0;
}

int host_holds(const void *p, size_t size)
{
	for (block *b = blocks; b; b = b->next)
		if (b->host && (const unsigned char *)p >= b->p && (const unsigned char *)p + size <= b->p + b->size) return 1;
	return 0;
}

void memory_check(void)
{
	for (block *b = blocks; b; b = b->next) damaged(b);
}

void memory_release(const device *d)
{
	for (block **at = &blocks; *at;)
		if ((*at)->dev == d) {
			leaks++;
			give(at);
		} else {
			at = &(*at)->next;
		}
}

API cuMemGetInfo_v2(size_t *free, size_t *total)
{
	BEGIN;
	*total = device_memory;
	*free = device_memory - c->dev->used;
	return OK;
}

API cuMemAlloc_v2(CUdeviceptr *p, size_t size)
{
	BEGIN;
	if (!size) return INVALID_VALUE;
	if (size > device_memory - c->dev->used) return OUT_OF_MEMORY;
	*p = (CUdeviceptr)take(c->dev, size, 0);
	return *p ? OK : OUT_OF_MEMORY;
}

API cuMemFree_v2(CUdeviceptr p)
{
	BEGIN;
	block **at = find(p, 0);
	if (!at || (*at)->dev != c->dev) return violation("cuMemFree on device %d: 0x%llx: %s", c->dev->index, (unsigned long long)p, describe(p));
	rc = stream_drain(c->dev); /* a free waits for the device */
	give(at);
	return rc;
}

API cuMemHostAlloc(void **p, size_t size, unsigned flags)
{
	BEGIN;
	if (!size) return INVALID_VALUE;
	if (!(flags & 1)) return violation("cuMemHostAlloc: not portable: other devices would take the memory for pageable");
	*p = take(c->dev, size, 1);
	return *p ? OK : OUT_OF_MEMORY;
}

API cuMemFreeHost(void *p)
{
	BEGIN;
	block **at = find((uint64_t)p, 1);
	if (!at) return violation("cuMemFreeHost: %p: %s", p, describe((uint64_t)p));
	for (int i = 0; i < device_count; i++) stream_drain(&devices[i]);
	give(at);
	return OK;
}
