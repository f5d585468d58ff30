#pragma once
// From logits to the next token.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace osprey {

struct SamplerSpec {
  double temperature = 1.0;      // 0: the most likely token
  std::optional<int64_t> top_k;  // only the k most likely
  std::optional<double> top_p;   // only the most likely that together reach p
  uint64_t seed = 42;
};

/// Draws from softmax(logits / temperature), cut by top_k, then by top_p. A pure function of its arguments:
/// the draw belongs to (seed, stream, index). Ties in likelihood go to the smaller token. Errors: throws for
/// settings out of range and for logits that are not finite.
class Sampler {
 public:
  explicit Sampler(const SamplerSpec& spec);
  int32_t sample(std::span<const float> logits, uint64_t stream, uint64_t index);

 private:
  SamplerSpec spec_;
  std::vector<int32_t> order_;
  std::vector<double> weight_;
};

}  // namespace osprey
