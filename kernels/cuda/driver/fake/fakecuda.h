/* What the parts of the fake driver share. One mutex guards all of it; kernels run under it. */
#ifndef FAKECUDA_H
#define FAKECUDA_H

#include <stddef.h>
#include <stdint.h>

#if __has_include("../../emu/launch.h")
#include "../../emu/launch.h"
#else
typedef struct { unsigned x, y, z; } emu_dim;
typedef struct {
	const char *name;
	int nargs;
	const size_t *sizes;
	void (*run)(emu_dim grid, emu_dim block, size_t smem, void **args);
} emu_kernel;
const emu_kernel *emu_find(const char *name);
#endif

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;

#define API __attribute__((visibility("default"))) CUresult

enum {
	OK = 0,
	INVALID_VALUE = 1,
	OUT_OF_MEMORY = 2,
	NOT_INITIALIZED = 3,
	INVALID_DEVICE = 101,
	INVALID_IMAGE = 200,
	INVALID_CONTEXT = 201,
	INVALID_HANDLE = 400,
	NOT_FOUND = 500,
	NOT_READY = 600,
	CONTEXT_IS_DESTROYED = 709,
	NOT_SUPPORTED = 801,
};

enum { MAX_DEVICES = 16, MAX_SHARED = 232448, DEFAULT_SHARED = 49152 };

typedef struct device device;

/* A primary context lives from the first retain to the last release. */
typedef struct context {
	device *dev;
	int alive;
	struct context *next;
} context;

struct device {
	int index;
	int lost;     /* the code that sticks, or 0 */
	int retained;
	context *ctx; /* while retained */
	uint64_t used;
};

extern device devices[MAX_DEVICES];
extern int device_count, deferred;
extern uint64_t device_memory;

/* Counters, see fakecuda_count. */
extern uint64_t violations, leaks, launches, live_memory, live_host, live_streams, live_events, live_modules;

/* lock and unlock are used through LOCK: the mutex is held to the end of the block. */
int lock(void);
void unlock(int *);
#define LOCK int guard __attribute__((cleanup(unlock), unused)) = lock()

/* begin holds the mutex, counts the call, injects failures and finds the current context. */
CUresult begin(const char *call, context **c);
#define BEGIN               \
	LOCK;                   \
	context *c;             \
	CUresult rc = begin(__func__, &c); \
	if (rc) return rc

/* An asynchronous call takes an injected sticky code along as work. */
CUresult begin_async(const char *call, context **c, int *fault);
#define BEGIN_ASYNC         \
	LOCK;                   \
	context *c;             \
	int fault = 0;          \
	CUresult rc = begin_async(__func__, &c, &fault); \
	if (rc) return rc

int is_sticky(int code);
CUresult injected(const char *call, int dev);
CUresult violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* memory.c */
int memory_holds(const device *d, uint64_t p, uint64_t size, const char *call); /* reports when not */
int host_holds(const void *p, size_t size);
void memory_check(void);                /* the bytes behind every allocation */
void memory_release(const device *d);   /* what a context leaves behind */

/* stream.c */
typedef struct stream stream;
typedef struct op op;
struct op {
	enum { COPY, FILL, LAUNCH, RECORD, WAIT, FAULT } kind;
	void *dst;
	const void *src;
	size_t size;
	unsigned char value;
	void *owned; /* freed after the work */
	const emu_kernel *kernel;
	emu_dim grid, block;
	void **args;
	struct event *event;
	uint64_t mark; /* RECORD: which recording; WAIT: how far the other stream must be */
	stream *other;
	int fault;
};
CUresult stream_add(stream *s, context *c, op o, int fault);
CUresult stream_finish(stream *s); /* does all work; the error of the device */
CUresult stream_drain(device *d);  /* all streams of the device */
stream *stream_default(context *c);
void stream_release(const device *d);

/* module.c */
void module_release(const device *d);

/* probes.c */
const emu_kernel *probe_find(const char *name);

#endif
