// The scheduler of the emulator: fibers, collectives, barriers.
#include <algorithm>
#include <numeric>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// emu_switch saves the callee-saved registers on the running stack, its pointer to *save,
// and goes on where another stack was left.
extern "C" void emu_switch(void **save, void *to);

#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp,(%rdi)
	movq %rsi,%rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
.size emu_switch,.-emu_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,%function
emu_switch:
	sub sp,sp,#160
	stp x19,x20,[sp]
	stp x21,x22,[sp,#16]
	stp x23,x24,[sp,#32]
	stp x25,x26,[sp,#48]
	stp x27,x28,[sp,#64]
	stp x29,x30,[sp,#80]
	stp d8,d9,[sp,#96]
	stp d10,d11,[sp,#112]
	stp d12,d13,[sp,#128]
	stp d14,d15,[sp,#144]
	mov x2,sp
	str x2,[x0]
	mov sp,x1
	ldp x19,x20,[sp]
	ldp x21,x22,[sp,#16]
	ldp x23,x24,[sp,#32]
	ldp x25,x26,[sp,#48]
	ldp x27,x28,[sp,#64]
	ldp x29,x30,[sp,#80]
	ldp d8,d9,[sp,#96]
	ldp d10,d11,[sp,#112]
	ldp d12,d13,[sp,#128]
	ldp d14,d15,[sp,#144]
	add sp,sp,#160
	ret
.size emu_switch,.-emu_switch
)");
#else
#error "the emulator knows how to switch stacks on x86-64 and AArch64"
#endif

namespace emu {
thread_local Thread *current;

static thread_local const std::function<void()> *kernel;
static thread_local void *scheduler_sp;
static thread_local unsigned order_seed;
#if defined(__SANITIZE_ADDRESS__)
static thread_local void *scheduler_fake;
static thread_local const void *scheduler_stack;
static thread_local size_t scheduler_size;
#endif

constexpr size_t kStack = 128 << 10;

// Stacks are kept by the OS thread for its next blocks.
struct Stacks {
	std::vector<void *> all;
	void *get(size_t i) {
		while (all.size() <= i) {
			void *p = aligned_alloc(64, kStack);
			if (!p) die("out of memory for stacks");
			all.push_back(p);
		}
		return all[i];
	}
	~Stacks() {
		for (void *p : all) free(p);
	}
};
static thread_local Stacks stacks;

void die(const char *what) {
	fprintf(stderr, "cuda_emu: %s", what);
	if (current) fprintf(stderr, " (block %u, thread %u)", current->block->index.x, current->index.x);
	fputc('\n', stderr);
	abort();
}

static void to_scheduler() {
	Thread *me = current;
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(me->done ? nullptr : &me->fake, scheduler_stack, scheduler_size);
#endif
	emu_switch(&me->sp, scheduler_sp);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(me->fake, &scheduler_stack, &scheduler_size);
#endif
}

static void resume(Thread *t) {
	current = t;
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(&scheduler_fake, t->stack, kStack);
#endif
	emu_switch(&scheduler_sp, t->sp);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
	current = nullptr;
}

static void wait_while(const uint64_t *epoch, uint64_t value) {
	current->waits_for = epoch, current->waits_while = value;
	to_scheduler();
	current->waits_for = nullptr;
}

static void fiber() {
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
	(*kernel)();
	Thread *me = current;
	me->done = true;
	me->warp->exited++;
	Block *b = me->block;
	b->exited++;
	if (!me->copies.empty()) die("a thread left the kernel with copies under way");
	if (me->warp->arrived) die("a lane left the kernel while others wait in a warp collective");
	// A barrier is for the threads that are left.
	if (b->arrived && b->arrived == b->threads - b->exited) b->arrived = 0, b->epoch++;
	to_scheduler();
	abort();
}

const Operands &collective(const char *op, const void *operand, size_t n) {
	Thread *me = current;
	Warp *w = me->warp;
	if (w->exited) die("a warp collective after a lane has left the kernel");
	if (w->lanes != 32) die("a warp collective in a warp of fewer than 32 lanes");
	if (w->arrived == 0)
		w->op = op;
	else if (w->op != op)
		die("lanes of a warp meet in different collectives");
	uint64_t epoch = w->epoch;
	Operands &slots = w->slot[epoch & 1];
	if (n) memcpy(slots[me->lane], operand, n);
	if (++w->arrived == w->lanes)
		w->arrived = 0, w->epoch++;
	else
		wait_while(&w->epoch, epoch);
	// Not overwritten yet: the collective after the next needs this lane, too.
	return slots;
}

void barrier() {
	Block *b = current->block;
	if (++b->arrived == b->threads - b->exited)
		b->arrived = 0, b->epoch++;
	else
		wait_while(&b->epoch, b->epoch);
}

static void start(Thread *t, size_t i) {
	t->stack = stacks.get(i);
#if defined(__SANITIZE_ADDRESS__)
	__asan_unpoison_memory_region(t->stack, kStack); // a fiber before left frames behind
#endif
	uintptr_t *s = (uintptr_t *)((char *)t->stack + kStack);
#if defined(__x86_64__)
	*--s = 0; // where a return address would be: the stack is aligned as after a call
	*--s = (uintptr_t)&fiber;
	for (int r = 0; r < 6; r++) *--s = 0;
#else
	s -= 20;
	memset(s, 0, 160);
	s[11] = (uintptr_t)&fiber; // x30
#endif
	t->sp = s;
}

static void shuffle(std::vector<unsigned> &v, unsigned seed) {
	if (seed == 1) std::reverse(v.begin(), v.end());
	uint64_t r = seed * 0x9E3779B97F4A7C15ull;
	for (size_t i = v.size(); seed > 1 && i > 1; i--) {
		r = r * 6364136223846793005ull + 1442695040888963407ull;
		std::swap(v[i - 1], v[(r >> 33) % i]);
	}
}

// Runs the threads of groups until none can go on, group by group, and all over again.
static void run_block(std::vector<Thread> &threads, const std::vector<std::vector<unsigned>> &groups, const Block &b) {
	while (b.exited < b.threads) {
		bool any = false;
		for (const auto &group : groups)
			for (bool moved = true; moved;) {
				moved = false;
				for (unsigned i : group) {
					Thread *t = &threads[i];
					if (t->done || (t->waits_for && *t->waits_for == t->waits_while)) continue;
					resume(t);
					any = moved = true;
				}
			}
		if (!any) die("deadlock: a barrier or collective is not reached by all");
	}
}

void launch(emu_dim grid, emu_dim block, size_t smem, const std::function<void()> &k) {
	if (current) die("a launch from within a kernel");
	const unsigned n = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
	if (n == 0 || n > 1024 || blocks == 0) die("a launch of no threads, or of more than 1024 in a block");
	std::vector<Thread> threads(n);
	std::vector<Warp> warps((n + 31) / 32);
	// In order, a warp runs as far as it can; shuffled, threads of all warps take turns.
	std::vector<std::vector<unsigned>> groups(order_seed > 1 ? 1 : warps.size());
	for (unsigned i = 0; i < n; i++) groups[order_seed > 1 ? 0 : i / 32].push_back(i);
	for (auto &g : groups) shuffle(g, order_seed);
	if (order_seed == 1) std::reverse(groups.begin(), groups.end());
	std::vector<unsigned> order;
	if (order_seed) {
		order.resize(blocks);
		std::iota(order.begin(), order.end(), 0u);
		shuffle(order, order_seed);
	}
	kernel = &k;
	for (unsigned at = 0; at < blocks; at++) {
		unsigned id = order_seed ? order[at] : at;
		Block b{};
		b.index = {id % grid.x, id / grid.x % grid.y, id / grid.x / grid.y};
		b.dim = {block.x, block.y, block.z};
		b.grid = {grid.x, grid.y, grid.z};
		b.threads = n;
		void *p = nullptr;
		if (smem && posix_memalign(&p, 128, smem)) die("out of memory for shared memory");
		if (smem) memset(p, 0xff, smem);
		b.smem = (unsigned char *)p;
		for (auto &w : warps) memset(&w, 0, sizeof w);
		for (unsigned i = 0; i < n; i++) {
			Thread &t = threads[i];
			t = Thread{};
			t.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
			t.lane = i % 32, t.warp = &warps[i / 32], t.block = &b;
			t.warp->lanes++;
			start(&t, i);
		}
		run_block(threads, groups, b);
		free(p);
	}
}
} // namespace emu

extern "C" void emu_order(unsigned seed) { emu::order_seed = seed; }
