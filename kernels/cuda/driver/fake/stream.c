/* Streams, events and the work in them. */
#include "fakecuda.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct event {
	device *dev;
	int alive;
	uint64_t recordings, done; /* it has happened when they are equal */
	stream *where;             /* of the last recording */
	uint64_t position;
	double ms;
	struct event *next;
} event;

struct stream {
	device *dev;
	int alive;
	op *queue;
	size_t length, capacity;
	uint64_t head; /* operations done, of head + length so far */
	struct stream *next;
};

/* Handles are never used again: one of a destroyed object is told. */
static stream *streams;
static event *events;

static CUresult run_until(stream *s, uint64_t position);

static void work(device *d, op *o)
{
	if (o->kind == WAIT) run_until(o->other, o->mark);
	if (o->kind == RECORD && o->event->done < o->mark) {
		struct timespec t;
		clock_gettime(CLOCK_MONOTONIC, &t);
		o->event->ms = t.tv_sec * 1e3 + t.tv_nsec / 1e6;
		o->event->done = o->mark;
	}
	if (d->lost) return;
	switch (o->kind) {
	case COPY: memcpy(o->dst, o->src, o->size); break;
	case FILL: memset(o->dst, o->value, o->size); break;
	case FAULT: d->lost = o->fault; break;
	case LAUNCH:
		o->kernel->run(o->grid, o->block, o->size, o->args);
		memory_check();
		break;
	default: break;
	}
}

static void one(stream *s)
{
	op o = s->queue[0];
	memmove(s->queue, s->queue + 1, --s->length * sizeof *s->queue);
	s->head++;
	work(s->dev, &o);
	free(o.owned);
}

static CUresult run_until(stream *s, uint64_t position)
{
	while (s->head < position && s->length) one(s);
	return s->dev->lost;
}

CUresult stream_add(stream *s, context *c, op o, int fault)
{
	int own = s == stream_default(c);
	if (!own && (!s || !s->alive)) return violation("not a stream"), INVALID_HANDLE;
	if (s->dev != c->dev) return violation("a stream of device %d with the context of device %d", s->dev->index, c->dev->index), INVALID_HANDLE;
	if (fault) {
		free(o.owned);
		o = (op){.kind = FAULT, .fault = fault};
	}
	if (s->length == s->capacity) {
		s->capacity = s->capacity ? 2 * s->capacity : 16;
		s->queue = realloc(s->queue, s->capacity * sizeof *s->queue);
	}
	s->queue[s->length++] = o;
	if (!deferred || own) stream_finish(s);
	return OK;
}

CUresult stream_finish(stream *s) { return run_until(s, s->head + s->length); }

CUresult stream_drain(device *d)
{
	for (stream *s = streams; s; s = s->next)
		if (s->dev == d) stream_finish(s);
	return d->lost;
}

stream *stream_default(context *c)
{
	static stream own[MAX_DEVICES];
	own[c->dev->index].dev = c->dev;
	return &own[c->dev->index];
}

void stream_release(const device *d)
{
	for (stream *s = streams; s; s = s->next)
		if (s->dev == d && s->alive) {
			s->alive = 0;
			live_streams--;
			leaks++;
		}
	for (event *e = events; e; e = e->next)
		if (e->dev == d && e->alive) {
			e->alive = 0;
			live_events--;
			leaks++;
		}
}

API cuStreamCreate(stream **to, unsigned flags)
{
	BEGIN;
	if (flags != 1) return violation("cuStreamCreate: flags %u: a stream that waits for the default stream", flags);
	stream *s = calloc(1, sizeof *s);
	*s = (stream){.dev = c->dev, .alive = 1, .next = streams};
	streams = s;
	live_streams++;
	*to = s;
	return OK;
}

#define STREAM(s) if (!s || !s->alive || s->dev != c->dev) return violation("%s: not a stream of device %d", __func__, c->dev->index), INVALID_HANDLE
#define EVENT(e) if (!e || !e->alive) return violation("%s: not an event", __func__), INVALID_HANDLE

API cuStreamSynchronize(stream *s)
{
	BEGIN;
	if (!s) return stream_drain(c->dev);
	STREAM(s);
	return stream_finish(s);
}

API cuStreamQuery(stream *s)
{
	BEGIN;
	STREAM(s);
	if (s->length) one(s); /* who polls must get there */
	if (s->dev->lost) return s->dev->lost;
	return s->length ? NOT_READY : OK;
}

API cuStreamDestroy_v2(stream *s)
{
	BEGIN;
	STREAM(s);
	s->alive = 0; /* its work is still done, with the next that waits for the device */
	live_streams--;
	return OK;
}

API cuEventCreate(event **to, unsigned flags)
{
	BEGIN;
	(void)flags;
	event *e = calloc(1, sizeof *e);
	*e = (event){.dev = c->dev, .alive = 1, .next = events};
	events = e;
	live_events++;
	*to = e;
	return OK;
}

API cuEventRecord(event *e, stream *s)
{
	BEGIN;
	EVENT(e);
	if (!s) s = stream_default(c);
	if (e->dev != s->dev) return violation("cuEventRecord: an event of device %d in a stream of device %d", e->dev->index, s->dev->index), INVALID_HANDLE;
	uint64_t position = s->head + s->length + 1;
	rc = stream_add(s, c, (op){.kind = RECORD, .event = e, .mark = ++e->recordings}, 0);
	e->where = s;
	e->position = position;
	return rc;
}

API cuStreamWaitEvent(stream *s, event *e, unsigned flags)
{
	BEGIN;
	EVENT(e);
	(void)flags;
	if (!e->recordings) return OK;
	return stream_add(s ? s : stream_default(c), c, (op){.kind = WAIT, .other = e->where, .mark = e->position}, 0);
}

API cuEventQuery(event *e)
{
	BEGIN;
	EVENT(e);
	if (e->done < e->recordings && e->where->length) one(e->where); /* who polls must get there */
	if (c->dev->lost) return c->dev->lost;
	return e->done < e->recordings ? NOT_READY : OK;
}

API cuEventSynchronize(event *e)
{
	BEGIN;
	EVENT(e);
	if (e->recordings) run_until(e->where, e->position);
	return c->dev->lost;
}

API cuEventElapsedTime(float *ms, event *start, event *end)
{
	BEGIN;
	EVENT(start);
	EVENT(end);
	if (!start->recordings || !end->recordings) return INVALID_HANDLE;
	if (start->done < start->recordings || end->done < end->recordings) return NOT_READY;
	*ms = (float)(end->ms - start->ms);
	return OK;
}

API cuEventDestroy_v2(event *e)
{
	BEGIN;
	EVENT(e);
	e->alive = 0;
	live_events--;
	return OK;
}

/* Is there work to do that still reads these bytes of the host? */
static int read_later(const void *p, size_t size)
{
	for (stream *s = streams; s; s = s->next)
		for (size_t i = 0; i < s->length; i++) {
			const op *o = &s->queue[i];
			if (o->kind == COPY && (const char *)o->src < (const char *)p + size && (const char *)p < (const char *)o->src + o->size) return 1;
		}
	return 0;
}

static stream *chosen(stream *s, context *c) { return s ? s : stream_default(c); }

API cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t size, stream *s)
{
	BEGIN_ASYNC;
	if (!memory_holds(c->dev, dst, size, __func__)) return INVALID_VALUE;
	op o = {.kind = COPY, .dst = (void *)dst, .src = src, .size = size};
	if (!host_holds(src, size)) o.src = memcpy(o.owned = malloc(size), src, size); /* staged before the call returns */
	return stream_add(chosen(s, c), c, o, fault);
}

API cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t size, stream *s)
{
	BEGIN_ASYNC;
	if (!memory_holds(c->dev, src, size, __func__)) return INVALID_VALUE;
	int late = host_holds(dst, size);
	if (late && !read_later(dst, size)) memset(dst, 0xdb, size);
	rc = stream_add(chosen(s, c), c, (op){.kind = COPY, .dst = dst, .src = (void *)src, .size = size}, fault);
	if (!rc && !late) rc = stream_finish(chosen(s, c));
	return rc;
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t size, stream *s)
{
	BEGIN_ASYNC;
	if (!memory_holds(c->dev, dst, size, __func__) || !memory_holds(c->dev, src, size, __func__)) return INVALID_VALUE;
	return stream_add(chosen(s, c), c, (op){.kind = COPY, .dst = (void *)dst, .src = (void *)src, .size = size}, fault);
}

API cuMemsetD8Async(CUdeviceptr dst, unsigned char value, size_t size, stream *s)
{
	BEGIN_ASYNC;
	if (!memory_holds(c->dev, dst, size, __func__)) return INVALID_VALUE;
	return stream_add(chosen(s, c), c, (op){.kind = FILL, .dst = (void *)dst, .value = value, .size = size}, fault);
}
