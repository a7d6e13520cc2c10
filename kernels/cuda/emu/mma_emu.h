// Tensor cores and asynchronous copies of ../src/flash_mma.h.
//
// A copy is made as late as the device may make it: when the thread waits for it. Until
// then its destination is NaN, so that reading too early shows. Addresses in shared memory
// are offsets into the block's.
#pragma once

static inline uint32_t shared_base() { return 0; }

namespace emu {
inline unsigned char *shared(uint32_t at, uint32_t align) {
	if (at % align) die("a misaligned address in shared memory");
	return current->block->smem + at;
}
} // namespace emu

static inline void cp_async16(uint32_t dst, const void *src, bool exists) {
	if ((uintptr_t)src % 16) emu::die("a misaligned source of an asynchronous copy");
	unsigned char *d = emu::shared(dst, 16);
	memset(d, 0xff, 16);
	emu::current->copies.push_back({d, exists ? src : nullptr, emu::current->group});
}
static inline void cp_commit() { emu::current->group++; }
template <int n> static inline void cp_wait() {
	auto &copies = emu::current->copies;
	size_t done = 0;
	for (; done < copies.size() && copies[done].group + n < emu::current->group; done++) {
		if (copies[done].src)
			memcpy(copies[done].dst, copies[done].src, 16);
		else
			memset(copies[done].dst, 0, 16);
	}
	copies.erase(copies.begin(), copies.begin() + (long)done);
}

// Element e of register i of the lane is number 2*(lane%4)+e of row lane/4 of matrix i, or
// of its transpose.
static inline void load_matrices(const char *op, uint32_t (&r)[4], uint32_t row, bool transposed) {
	const emu::Operands &rows = emu::collective(op, &row, sizeof row);
	const unsigned lane = emu::current->lane;
	for (unsigned i = 0; i < 4; i++) {
		r[i] = 0;
		for (unsigned e = 0; e < 2; e++) {
			unsigned y = lane / 4, x = 2 * (lane % 4) + e;
			if (transposed) {
				unsigned t = x;
				x = y, y = t;
			}
			uint32_t at;
			uint16_t v;
			memcpy(&at, rows[8 * i + y], sizeof at);
			memcpy(&v, emu::shared(at, 16) + 2 * x, sizeof v);
			r[i] |= (uint32_t)v << (16 * e);
		}
	}
}
static inline void ldmatrix(uint32_t (&r)[4], uint32_t row) { load_matrices("ldmatrix", r, row, false); }
static inline void ldmatrix_transposed(uint32_t (&r)[4], uint32_t row) { load_matrices("ldmatrix.trans", r, row, true); }

// The products of 16 elements are summed exactly, the sum is rounded with c to float32. The
// device keeps fewer bits of small terms.
template <class T> static inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
	struct Fragment { uint32_t a[4], b[2]; } f = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
	const emu::Operands &all = emu::collective("mma", &f, sizeof f);
	const unsigned g = emu::current->lane / 4, t = emu::current->lane % 4;
	auto value = [](uint32_t pair, unsigned e) { return __uint_as_float(T::to_f32_bits(e ? pair >> 16 : pair & 0xffffu)); };
	double sum[4] = {};
	for (unsigned k = 0; k < 4; k++) {
		Fragment row, col[2];
		memcpy(&row, all[4 * g + k], sizeof row);
		for (unsigned e = 0; e < 2; e++) memcpy(&col[e], all[4 * (2 * t + e) + k], sizeof col[e]);
		for (unsigned half = 0; half < 2; half++)
			for (unsigned e = 0; e < 2; e++) {
				const float top = value(row.a[2 * half], e), low = value(row.a[2 * half + 1], e);
				for (unsigned n = 0; n < 2; n++) {
					const float b = value(col[n].b[half], e);
					sum[n] += (double)top * b;
					sum[2 + n] += (double)low * b;
				}
			}
	}
	for (unsigned i = 0; i < 4; i++) c[i] = (float)(c[i] + sum[i]);
}

static inline void store_shared(uint32_t dst, uint32_t v) { memcpy(emu::shared(dst, 4), &v, 4); }
static inline uint4 load_shared(uint32_t src) {
	uint4 v;
	memcpy(&v, emu::shared(src, 16), sizeof v);
	return v;
}

static inline float exp2_approx(float x) {
	float r = exp2f(x);
	return r < 0x1p-126f ? 0 : r;
}
static inline float log2_approx(float x) { return log2f(x); }
static inline float divide_approx(float a, float b) { return a / b; }
