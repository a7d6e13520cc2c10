// The kernels, by name, with their arguments unpacked.
#define NF4_EMU 1
#include "../src/kernels.cu"
#include "../src/flash_sm80.cu"

#include <tuple>
#include <utility>

#include "runtime.h"

template <auto kernel> struct Entry;
template <class... A, void (*kernel)(A...)> struct Entry<kernel> {
	static constexpr int nargs = sizeof...(A);
	static constexpr size_t sizes[] = {sizeof(A)...};

	template <size_t... I> static void unpack(emu_dim grid, emu_dim block, size_t smem, void **args, std::index_sequence<I...>) {
		// A launch copies its arguments before it returns; they need no alignment.
		std::tuple<A...> a;
		(memcpy(&std::get<I>(a), args[I], sizeof(A)), ...);
		emu::launch(grid, block, smem, [&] { std::apply(kernel, a); });
	}
	static void run(emu_dim grid, emu_dim block, size_t smem, void **args) {
		unpack(grid, block, smem, args, std::index_sequence_for<A...>());
	}
};

#define KERNEL(name) {#name, Entry<name>::nargs, Entry<name>::sizes, Entry<name>::run}
static const emu_kernel kernels[] = {
	KERNEL(quantize_nf4_bf16),
	KERNEL(quantize_nf4_f16),
	KERNEL(quantize_nf4_f32),
	KERNEL(quantize_nf4_f32_as_bf16),
	KERNEL(quantize_nf4_f32_as_f16),
	KERNEL(quantize_fp4_bf16),
	KERNEL(quantize_fp4_f16),
	KERNEL(quantize_fp4_f32),
	KERNEL(quantize_fp4_f32_as_bf16),
	KERNEL(quantize_fp4_f32_as_f16),
	KERNEL(dequantize_nf4_bf16),
	KERNEL(dequantize_nf4_f16),
	KERNEL(dequantize_nf4_f32),
	KERNEL(dequantize_fp4_bf16),
	KERNEL(dequantize_fp4_f16),
	KERNEL(dequantize_fp4_f32),
	KERNEL(convert_bf16_f16),
	KERNEL(convert_bf16_f32),
	KERNEL(convert_f16_bf16),
	KERNEL(convert_f16_f32),
	KERNEL(convert_f32_bf16),
	KERNEL(convert_f32_f16),
	KERNEL(first_above_16),
	KERNEL(first_above_32),
	KERNEL(absmax_sum),
	KERNEL(absmax_fold),
	KERNEL(quantize_absmax),
	KERNEL(dequantize_absmax),
	KERNEL(flash_sm80_f16_64),
	KERNEL(flash_sm80_f16_96),
	KERNEL(flash_sm80_f16_128),
	KERNEL(flash_sm80_f16_256),
	KERNEL(flash_sm80_bf16_64),
	KERNEL(flash_sm80_bf16_96),
	KERNEL(flash_sm80_bf16_128),
	KERNEL(flash_sm80_bf16_256),
	KERNEL(probe_axpy),
	KERNEL(probe_smem),
	KERNEL(probe_params),
};

extern "C" const emu_kernel *emu_find(const char *name) {
	for (const emu_kernel &k : kernels)
		if (strcmp(k.name, name) == 0) return &k;
	return nullptr;
}
