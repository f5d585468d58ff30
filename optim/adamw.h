#pragma once
// Adam with decoupled weight decay.

#include "framework/optimizer.h"

namespace osprey {

/// Element-wise, so its parameters may be cut anywhere. See kernels/adamw.h for the update.
/// Reference: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101).
class AdamW final : public Optimizer {
 public:
  struct Settings {
    double learning_rate = 5e-4;
    double weight_decay = 0.01;
    double beta1 = 0.9, beta2 = 0.95;
    double eps = 1e-8;
  };
  explicit AdamW(const Settings& settings) : settings_(settings) {}

  const char* kind() const override { return "adamw"; }
  ShardGranularity granularity() const override { return ShardGranularity::element; }
  std::vector<StateSpec> states() const override;
  double learning_rate() const override { return settings_.learning_rate; }
  int64_t workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const override;
  double cost(const Shape& full_shape) const override;
  void step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const override;

 private:
  Settings settings_;
};

}  // namespace osprey
