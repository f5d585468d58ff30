#include "framework/data/mixture.h"

#include <cmath>
#include <numeric>

#include "framework/data/permutation.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {

Mixture::Mixture(std::span<const double> weights, uint64_t seed)
    : seed_(seed), stream_(stream_of("data mixture")) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  edges_.push_back(0);
  double below = 0;
  for (size_t s = 0; s < weights.size(); ++s) {
    // One sequence in a block at least: otherwise rounding could give a source a negative share of
    // one.
    require(weights[s] / total * kBlock >= 1, "data",
            "data.train[{}].weight is {} of a total of {}, less than one sequence in {}; raise it or leave "
            "the source out",
            s, weights[s], total, kBlock);
    below += weights[s];
    edges_.push_back(s + 1 == weights.size() ? uint64_t{1} << 32
                                             : static_cast<uint64_t>(std::llround(below / total * 0x1p32)));
  }
}

uint64_t Mixture::given_below(size_t source, uint64_t blocks) const {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(blocks) * kBlock * edges_[source]) >> 32);
}

Mixture::Pick Mixture::operator()(uint64_t sample) const {
  if (edges_.size() == 2) return {0, sample};
  const uint64_t block = sample / kBlock;
  const uint64_t seat = Permutation(kBlock, seed_, stream_, block)(sample % kBlock);
  // Seats of a block are dealt out source by source.
  for (size_t s = 0; s + 1 < edges_.size(); ++s) {
    const uint64_t before = given_below(s, block + 1) - given_below(s, block);
    const uint64_t after = given_below(s + 1, block + 1) - given_below(s + 1, block);
    if (seat < after) return {s, given_below(s + 1, block) - given_below(s, block) + seat - before};
  }
  return {edges_.size() - 2, 0};  // not reached: the last `after` is kBlock
}

}  // namespace osprey
