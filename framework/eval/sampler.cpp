#include "framework/eval/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {

Sampler::Sampler(const SamplerSpec& spec) : spec_(spec) {
  require(std::isfinite(spec.temperature) && spec.temperature >= 0, "generate",
          "temperature must be at least 0, got {}", spec.temperature);
  require(!spec.top_k || *spec.top_k >= 1, "generate", "top-k must be at least 1, got {}",
          spec.top_k.value_or(0));
  require(!spec.top_p || (*spec.top_p > 0 && *spec.top_p <= 1), "generate", "top-p must be in (0, 1], got {}",
          spec.top_p.value_or(0));
}

int32_t Sampler::sample(std::span<const float> logits, uint64_t stream, uint64_t index) {
  require(!logits.empty(), "generate", "no logits");
  for (float l : logits) require(std::isfinite(l), "generate", "the model gives logits that are not finite");
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  auto likelier = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (spec_.temperature == 0) return *std::min_element(order_.begin(), order_.end(), likelier);
  const size_t keep =
      spec_.top_k ? std::min(logits.size(), static_cast<size_t>(*spec_.top_k)) : logits.size();
  std::partial_sort(order_.begin(), order_.begin() + static_cast<int64_t>(keep), order_.end(), likelier);
  order_.resize(keep);
  const double largest = static_cast<double>(logits[static_cast<size_t>(order_[0])]);
  weight_.clear();
  double total = 0;
  for (int32_t token : order_) {
    weight_.push_back(
        std::exp((static_cast<double>(logits[static_cast<size_t>(token)]) - largest) / spec_.temperature));
    total += weight_.back();
  }
  double mass = total;
  if (spec_.top_p) {
    mass = 0;
    size_t n = 0;
    while (n < weight_.size() && (n == 0 || mass < *spec_.top_p * total)) mass += weight_[n++];
    weight_.resize(n);
  }
  const double u =
      (static_cast<double>(random_u64(spec_.seed, stream, index) >> 11) + 0.5) / 9007199254740992.0 * mass;
  double passed = 0;
  for (size_t i = 0; i < weight_.size(); ++i) {
    passed += weight_[i];
    if (u < passed) return order_[i];
  }
  return order_[weight_.size() - 1];
}

}  // namespace osprey
