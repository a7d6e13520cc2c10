// Between the scheduler (emu.cpp) and the table of kernels (kernels.cpp).
#pragma once
#include <functional>

#include "cuda_emu.h"
#include "launch.h"

namespace emu {
// Runs k for every thread of a grid.
void launch(emu_dim grid, emu_dim block, size_t smem, const std::function<void()> &k);
} // namespace emu
