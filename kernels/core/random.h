#pragma once
// Host-side draws on top of kernels/numerics/random.h.

#include <cstdint>
#include <string_view>

#include "kernels/numerics/random.h"

namespace osprey {

/// FNV-1a of a name: turns "layers.3.attn.q.weight" or "data order" into a stream number.
uint64_t stream_of(std::string_view name);

/// Standard normal (Box-Muller in double), a pure function of its arguments.
float random_normal(uint64_t seed, uint64_t stream, uint64_t index);

}  // namespace osprey
