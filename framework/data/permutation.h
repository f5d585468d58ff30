#pragma once
// A shuffle that is a function: where item i goes is computed, never stored or drawn from a state.

#include <array>
#include <cstddef>
#include <cstdint>

namespace osprey {

/// A bijection of [0, n) chosen by (seed, stream, index). The same on every machine, standard
/// library and rank. Reference: a Feistel network over the bits of n (Luby and Rackoff, 1988),
/// walked until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains",
/// 2002).
class Permutation {
 public:
  Permutation() = default;
  Permutation(uint64_t n, uint64_t seed, uint64_t stream, uint64_t index = 0);

  uint64_t size() const { return n_; }
  /// Where `i`, below size(), goes.
  uint64_t operator()(uint64_t i) const {
    if (n_ <= 1) return i;
    do i = mix(i);
    while (i >= n_);
    return i;
  }

 private:
  static constexpr int kRounds = 4;  // of two half-rounds each

  static uint64_t hash(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
  }
  // A bijection of [0, 2^(low + high)), a domain less than twice n: each half is xored with a hash
  // of the other, which can be undone.
  uint64_t mix(uint64_t i) const {
    uint64_t a = i & low_mask_, b = i >> low_bits_;
    for (int r = 0; r < kRounds; ++r) {
      a ^= hash(b ^ keys_[static_cast<size_t>(2 * r)]) & low_mask_;
      b ^= hash(a ^ keys_[static_cast<size_t>(2 * r + 1)]) & high_mask_;
    }
    return (b << low_bits_) | a;
  }

  uint64_t n_ = 0, low_mask_ = 0, high_mask_ = 0;
  int low_bits_ = 0;
  std::array<uint64_t, 2 * kRounds> keys_{};
};

}  // namespace osprey
