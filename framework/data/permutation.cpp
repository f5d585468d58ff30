#include "framework/data/permutation.h"

#include <bit>

#include "kernels/numerics/random.h"

namespace osprey {

Permutation::Permutation(uint64_t n, uint64_t seed, uint64_t stream, uint64_t index) : n_(n) {
  if (n <= 1) return;
  const int bits = std::bit_width(n - 1);
  low_bits_ = (bits + 1) / 2;
  low_mask_ = (uint64_t{1} << low_bits_) - 1;
  high_mask_ = (uint64_t{1} << (bits - low_bits_)) - 1;
  for (size_t r = 0; r < keys_.size(); ++r) keys_[r] = random_u64(seed, stream, index * keys_.size() + r);
}

}  // namespace osprey
