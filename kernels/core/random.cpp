#include "kernels/core/random.h"

#include "kernels/numerics/normal.h"

namespace osprey {

uint64_t stream_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

float random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
  return normal_of(philox(seed, stream, index));
}

}  // namespace osprey
