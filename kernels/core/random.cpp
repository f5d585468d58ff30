#include "kernels/core/random.h"

#include <cmath>
#include <numbers>

namespace osprey {

uint64_t stream_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

float random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  const Philox p = philox(seed, stream, index);
  const double u = (p.v[0] + 0.5) / 4294967296.0, w = (p.v[1] + 0.5) / 4294967296.0;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * w));
}

}  // namespace osprey
