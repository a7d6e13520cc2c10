/* Loading, failures on demand, devices and contexts. */
#include "fakecuda.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

device devices[MAX_DEVICES];
int device_count, deferred;
uint64_t device_memory;
uint64_t violations, leaks, launches, live_memory, live_host, live_streams, live_events, live_modules;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int delay, initialized, driver_version, init_result, cc_major, cc_minor;
static __thread context *current;
static context *contexts; /* every one there ever was, so that a stale handle can be told */

typedef struct { char call[48]; long nth, seen; int dev, code; } failure;
static failure failures[64];
static int failure_count;

int lock(void) { pthread_mutex_lock(&mutex); return 0; }
void unlock(int *guard) { (void)guard; pthread_mutex_unlock(&mutex); }

CUresult violation(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	fputs("fakecuda: ", stderr);
	vfprintf(stderr, format, list);
	fputc('\n', stderr);
	va_end(list);
	violations++;
	return INVALID_VALUE;
}

static const char *setting(const char *name, const char *otherwise)
{
	const char *v = getenv(name);
	return v && *v ? v : otherwise;
}

__attribute__((constructor)) static void configure(void)
{
	device_count = atoi(setting("FAKECUDA_DEVICES", "1"));
	if (device_count > MAX_DEVICES) device_count = MAX_DEVICES;
	device_memory = strtoull(setting("FAKECUDA_MEMORY", "268435456"), NULL, 10);
	driver_version = atoi(setting("FAKECUDA_DRIVER_VERSION", "12040"));
	init_result = atoi(setting("FAKECUDA_INIT", "0"));
	delay = atoi(setting("FAKECUDA_DELAY", "0"));
	deferred = strcmp(setting("FAKECUDA_STREAMS", "deferred"), "immediate") != 0;
	if (sscanf(setting("FAKECUDA_CC", "9.0"), "%d.%d", &cc_major, &cc_minor) != 2) abort();
	for (int i = 0; i < MAX_DEVICES; i++) devices[i].index = i;
	char *list = strdup(setting("FAKECUDA_FAIL", "")), *rest = list;
	for (char *f; (f = strsep(&rest, ","));) {
		failure x = {.dev = -1};
		if (!*f) continue;
		if (sscanf(f, "%47[^:]:%ld@%d=%d", x.call, &x.nth, &x.dev, &x.code) != 4) {
			x.dev = -1;
			if (sscanf(f, "%47[^:]:%ld=%d", x.call, &x.nth, &x.code) != 3) x.nth = 0;
		}
		if (x.nth < 1 || failure_count == 64) {
			fprintf(stderr, "fakecuda: FAKECUDA_FAIL: cannot read \"%s\"\n", f);
			abort();
		}
		failures[failure_count++] = x;
	}
	free(list);
}

int is_sticky(int code)
{
	switch (code) {
	case 4: case 214: case 220: case 226: case 700: case 702: case 709: case 710:
	case 714: case 715: case 716: case 717: case 718: case 719: case 721: case 999:
		return 1;
	}
	return 0;
}

CUresult injected(const char *call, int dev)
{
	int code = OK;
	for (int i = 0; i < failure_count; i++) {
		failure *f = &failures[i];
		if (strcmp(f->call, call) == 0 && (f->dev < 0 || f->dev == dev) && ++f->seen == f->nth) code = f->code;
	}
	return code;
}

CUresult begin_async(const char *call, context **c, int *fault)
{
	if (!initialized) return NOT_INITIALIZED;
	*c = current;
	if (!current) return INVALID_CONTEXT;
	if (!current->alive) return CONTEXT_IS_DESTROYED;
	device *d = current->dev;
	if (d->lost) return d->lost;
	int code = injected(call, d->index);
	if (!is_sticky(code)) return code;
	if (fault) {
		*fault = code;
		return OK;
	}
	return d->lost = code;
}

CUresult begin(const char *call, context **c) { return begin_async(call, c, NULL); }

__attribute__((visibility("default"))) uint64_t fakecuda_count(const char *what)
{
	LOCK;
	uint64_t held = 0;
	for (int i = 0; i < MAX_DEVICES; i++) held += devices[i].retained;
	struct { const char *name; uint64_t n; } all[] = {
		{"violations", violations}, {"leaks", leaks}, {"launches", launches}, {"memory", live_memory}, {"host", live_host},
		{"streams", live_streams}, {"events", live_events}, {"modules", live_modules}, {"contexts", held},
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (strcmp(all[i].name, what) == 0) return all[i].n;
	return UINT64_MAX;
}

API cuInit(unsigned flags)
{
	LOCK;
	CUresult rc = injected(__func__, -1);
	if (rc) return rc;
	if (flags) return INVALID_VALUE;
	if (init_result) return init_result;
	initialized = 1;
	return device_count > 0 ? OK : 100;
}

API cuDriverGetVersion(int *v)
{
	LOCK;
	CUresult rc = injected(__func__, -1);
	if (!rc) *v = driver_version;
	return rc;
}

static const struct { int code; const char *name, *text; } texts[] = {
	{0, "CUDA_SUCCESS", "no error"}, {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
	{2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}, {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
	{34, "CUDA_ERROR_STUB_LIBRARY", "the library is a stub"}, {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
	{101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}, {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
	{201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
	{214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"}, {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
	{500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"}, {600, "CUDA_ERROR_NOT_READY", "device not ready"},
	{700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}, {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
	{719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}, {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
	{802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"}, {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult text(int code, const char **to, int name)
{
	*to = NULL;
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		if (texts[i].code == code) *to = name ? texts[i].name : texts[i].text;
	return *to ? OK : INVALID_VALUE;
}

API cuGetErrorName(int code, const char **to) { return text(code, to, 1); }
API cuGetErrorString(int code, const char **to) { return text(code, to, 0); }

/* Calls about a device need no context. */
#define DEVICE(h)                                      \
	LOCK;                                              \
	if (!initialized) return NOT_INITIALIZED;          \
	if (h < 0 || h >= device_count) return INVALID_DEVICE; \
	CUresult rc = injected(__func__, h);               \
	if (rc) return rc

API cuDeviceGetCount(int *n)
{
	LOCK;
	if (!initialized) return NOT_INITIALIZED;
	CUresult rc = injected(__func__, -1);
	*n = device_count;
	return rc;
}

API cuDeviceGet(CUdevice *h, int index)
{
	DEVICE(index);
	*h = index;
	return OK;
}

API cuDeviceGetName(char *to, int n, CUdevice h)
{
	DEVICE(h);
	snprintf(to, n, "Fake GPU %d", h);
	return OK;
}

API cuDeviceGetPCIBusId(char *to, int n, CUdevice h)
{
	DEVICE(h);
	snprintf(to, n, "0000:%02X:00.0", 0x40 + h);
	return OK;
}

API cuDeviceGetUuid_v2(unsigned char *to, CUdevice h)
{
	DEVICE(h);
	for (int i = 0; i < 16; i++) to[i] = 16 * h + i;
	return OK;
}

API cuDeviceGetUuid(unsigned char *to, CUdevice h) { return cuDeviceGetUuid_v2(to, h); }

API cuDeviceTotalMem_v2(size_t *n, CUdevice h)
{
	DEVICE(h);
	*n = device_memory;
	return OK;
}

API cuDeviceGetAttribute(int *v, int attribute, CUdevice h)
{
	DEVICE(h);
	switch (attribute) {
	case 1: *v = 1024; break;     /* threads of a block */
	case 8: *v = DEFAULT_SHARED; break;
	case 10: *v = 32; break;      /* warp */
	case 13: *v = 1500000; break; /* kHz */
	case 16: *v = 4; break;       /* SMs */
	case 33: *v = 0x40 + h; break; /* PCI bus */
	case 34: case 50: *v = 0; break;
	case 36: *v = 2000000; break;
	case 37: *v = 4096; break;
	case 38: *v = 4 << 20; break;
	case 75: *v = cc_major; break;
	case 76: *v = cc_minor; break;
	case 97: *v = MAX_SHARED; break;
	default: return INVALID_VALUE;
	}
	return OK;
}

API cuDevicePrimaryCtxRetain(context **to, CUdevice h)
{
	DEVICE(h);
	device *d = &devices[h];
	if (d->lost) return d->lost;
	if (!d->ctx) {
		d->ctx = calloc(1, sizeof *d->ctx);
		*d->ctx = (context){.dev = d, .alive = 1, .next = contexts};
		contexts = d->ctx;
	}
	d->retained++;
	*to = d->ctx;
	return OK;
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice h, unsigned flags)
{
	DEVICE(h);
	return flags > 31 ? INVALID_VALUE : OK; // how threads wait: here they do not
}

API cuDevicePrimaryCtxRelease_v2(CUdevice h)
{
	DEVICE(h);
	device *d = &devices[h];
	if (!d->retained) return INVALID_CONTEXT;
	if (--d->retained) return d->lost;
	stream_drain(d);
	stream_release(d);
	module_release(d);
	memory_release(d);
	d->ctx->alive = 0;
	d->ctx = NULL;
	return d->lost;
}

static CUresult set_current(context *c)
{
	LOCK;
	if (!initialized) return NOT_INITIALIZED;
	context *known = contexts;
	while (known && known != c) known = known->next;
	if (c && !known) return violation("cuCtxSetCurrent: %p is not a context", (void *)c), INVALID_CONTEXT;
	CUresult rc = injected("cuCtxSetCurrent", c ? c->dev->index : -1);
	if (!rc) current = c;
	return rc;
}

API cuCtxSetCurrent(context *c)
{
	CUresult rc = set_current(c);
	if (delay) usleep(delay); /* long enough for a goroutine to be moved to another thread */
	return rc;
}

API cuCtxGetCurrent(context **c)
{
	LOCK;
	*c = current;
	return OK;
}

API cuCtxGetDevice(CUdevice *h)
{
	BEGIN;
	*h = c->dev->index;
	return OK;
}

API cuCtxSynchronize(void)
{
	BEGIN;
	return stream_drain(c->dev);
}
