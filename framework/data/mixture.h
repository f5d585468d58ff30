#pragma once
// Which source the n-th training sequence comes from.

#include <cstdint>
#include <span>
#include <vector>

namespace osprey {

/// Mixes sources by weight: within every block of kBlock sequences each source has its exact share
/// (to within one), in an order that a permutation chooses; shares that do not come out even carry
/// over, so counts never drift from the weights. A function of (seed, sample): nothing is
/// remembered.
class Mixture {
 public:
  static constexpr uint64_t kBlock = 4096;

  /// Errors: a weight so small that its source has no sequence in a block.
  Mixture(std::span<const double> weights, uint64_t seed);

  struct Pick {
    size_t source = 0;
    uint64_t index = 0;  // how many earlier-numbered sequences that source has given
  };
  Pick operator()(uint64_t sample) const;

 private:
  /// Sequences that sources below `source` give in the first `blocks` blocks.
  uint64_t given_below(size_t source, uint64_t blocks) const;

  std::vector<uint64_t> edges_;  // cumulative shares in units of 2^-32, first 0 and last 2^32
  uint64_t seed_ = 0, stream_ = 0;
};

}  // namespace osprey
