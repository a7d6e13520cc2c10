// Runs kernels for another process: requests on standard input, results on standard
// output, little endian. It lets the Go tests hold the kernels against the Go definitions.
//
//	request:  u32 length, name; u32 grid x, y, z, block, shared, order, arguments;
//	          per argument u32 kind (0 value, 1 buffer, 2 record), u32 length, the bytes;
//	          of a record also u32 count and, for each pointer in it, u32 offset, a buffer
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
		emu_dim grid{};
		grid.x = read_u32(), grid.y = read_u32(), grid.z = read_u32();
		uint32_t block = read_u32(), shared = read_u32(), order = read_u32(), nargs = read_u32();
		if ((int)nargs != k->nargs) fail(name + " takes " + std::to_string(k->nargs) + " arguments, got " + std::to_string(nargs));
		std::vector<std::vector<unsigned char>> values(nargs);
		std::vector<Buffer> buffers;
		std::vector<size_t> of_argument;
		std::vector<void *> args(nargs);
		auto read_buffer = [&](uint32_t argument, uint32_t n) {
			buffers.emplace_back(n);
			of_argument.push_back(argument);
			read_all(buffers.back().data(), n);
			return buffers.back().data();
		};
		for (uint32_t i = 0; i < nargs; i++) {
			uint32_t kind = read_u32(), n = read_u32();
			if (kind == 1) {
				values[i].resize(sizeof(void *));
				unsigned char *p = read_buffer(i, n);
				memcpy(values[i].data(), &p, sizeof p);
			} else {
				values[i].resize(n);
				read_all(values[i].data(), n);
			}
			for (uint32_t pointers = kind == 2 ? read_u32() : 0; pointers > 0; pointers--) {
				uint32_t at = read_u32(), size = read_u32();
				unsigned char *p = read_buffer(i, size);
				if (at + sizeof p > n) fail("a pointer outside of its record");
				memcpy(values[i].data() + at, &p, sizeof p);
			}
			if (values[i].size() != k->sizes[i]) fail(name + ": argument " + std::to_string(i) + " has the wrong size");
			args[i] = values[i].data();
		}
		emu_order(order);
		k->run(grid, {block, 1, 1}, shared, args.data());
		for (size_t b = 0; b < buffers.size(); b++) {
			buffers[b].check(name.c_str(), of_argument[b]);
			if (fwrite(buffers[b].data(), 1, buffers[b].n, stdout) != buffers[b].n) fail("cannot write the result");
			free(buffers[b].all);
		}
		fflush(stdout);
	}
}
