// Runs kernels for another process: requests on standard input, results on standard
// output, little endian. It lets the Go tests hold the kernels against the Go definitions.
//
//	request:  u32 length, name; u32 grid, block, shared, order, arguments;
//	          per argument u32 kind (0 value, 1 buffer), u32 length, the bytes
//	result:   the bytes of every buffer, in order
//
// Buffers are as large as they must be and no larger, aligned to 16 bytes and no more, so
// that AddressSanitizer sees an access beside them; guards are checked without it.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

#include "../launch.h"

static const size_t kGuard = 64;
static const unsigned char kGuardByte = 0xa5;

[[noreturn]] static void fail(const std::string &what) {
	fprintf(stderr, "run: %s\n", what.c_str());
	exit(1);
}

static void read_all(void *p, size_t n) {
	if (n && fread(p, 1, n, stdin) != n) fail("the request ends early");
}

static uint32_t read_u32() {
	uint32_t v;
	read_all(&v, 4);
	return v;
}

struct Buffer {
	unsigned char *all = nullptr;
	size_t guard = 0, n = 0;

	explicit Buffer(size_t size) : n(size) {
#if !defined(__SANITIZE_ADDRESS__)
		guard = kGuard;
#endif
		// 16 past a multiple of 32: code that needs a larger alignment is found.
		void *p = nullptr;
		if (posix_memalign(&p, 32, 16 + n + 2 * guard)) fail("out of memory");
		all = (unsigned char *)p;
		memset(all, kGuardByte, 16 + n + 2 * guard);
	}
	unsigned char *data() const { return all + 16 + guard; }
	void check(const char *kernel, size_t argument) const {
		for (size_t i = 0; i < 16 + n + 2 * guard; i++)
			if ((i < 16 + guard || i >= 16 + guard + n) && all[i] != kGuardByte)
				fail(std::string(kernel) + ": wrote beside the buffer of argument " + std::to_string(argument));
	}
};

int main() {
	for (;;) {
		uint32_t length;
		size_t got = fread(&length, 1, 4, stdin);
		if (got == 0) return 0;
		if (got != 4 || length > 200) fail("a broken request");
		std::string name(length, ' ');
		read_all(&name[0], length);
		const emu_kernel *k = emu_find(name.c_str());
		if (!k) fail("no kernel " + name);
		uint32_t grid = read_u32(), block = read_u32(), shared = read_u32(), order = read_u32(), nargs = read_u32();
		if ((int)nargs != k->nargs) fail(name + " takes " + std::to_string(k->nargs) + " arguments, got " + std::to_string(nargs));
		std::vector<std::vector<unsigned char>> values(nargs);
		std::vector<Buffer> buffers;
		std::vector<size_t> of_argument;
		std::vector<void *> args(nargs);
		for (uint32_t i = 0; i < nargs; i++) {
			uint32_t kind = read_u32(), n = read_u32();
			if (kind == 1) {
				buffers.emplace_back(n);
				of_argument.push_back(i);
				read_all(buffers.back().data(), n);
				values[i].resize(sizeof(void *));
				unsigned char *p = buffers.back().data();
				memcpy(values[i].data(), &p, sizeof p);
			} else {
				values[i].resize(n);
				read_all(values[i].data(), n);
			}
			if (values[i].size() != k->sizes[i]) fail(name + ": argument " + std::to_string(i) + " has the wrong size");
			args[i] = values[i].data();
		}
		emu_order(order);
		k->run({grid, 1, 1}, {block, 1, 1}, shared, args.data());
		for (size_t b = 0; b < buffers.size(); b++) {
			buffers[b].check(name.c_str(), of_argument[b]);
			if (fwrite(buffers[b].data(), 1, buffers[b].n, stdout) != buffers[b].n) fail("cannot write the result");
			free(buffers[b].all);
		}
		fflush(stdout);
	}
}
