#pragma once
// Adam with decoupled weight decay.

#include "framework/optimizer.h"
#include "kernels/numerics/adamw.h"

namespace osprey {

/// What moments are stored as: bf16 is rounded by chance; int8 has one scale for 256 numbers (2110.02861).
enum class MomentFormat { fp32, bf16, int8 };
/// The states of Adam with moments in this format.
std::vector<StateSpec> adam_states(MomentFormat format);

/// Element-wise, so its parameters may be cut anywhere, except where 256 numbers share a scale. See
/// kernels/adamw.h for the update, and kernels/compact_adam.h for the one in less memory.
/// Reference: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101).
class AdamW final : public Optimizer {
 public:
  struct Settings {
    double learning_rate = 5e-4;
    double weight_decay = 0.01;
    double beta1 = 0.9, beta2 = 0.95;
    double eps = 1e-8;
    MomentFormat moments = MomentFormat::fp32;
    EpsPlace eps_place = EpsPlace::corrected_root;
  };
  explicit AdamW(const Settings& settings) : settings_(settings) {}

  const char* kind() const override { return "adamw"; }
  ShardGranularity granularity() const override {
    return settings_.moments == MomentFormat::int8 ? ShardGranularity::matrix : ShardGranularity::element;
  }
  bool element_wise() const override { return true; }
  std::vector<StateSpec> states() const override { return adam_states(settings_.moments); }
  bool updates_in_place() const override { return true; }
  double learning_rate() const override { return settings_.learning_rate; }
  int64_t workspace_bytes(const Queue& queue, std::span<const ParamPiece> pieces) const override;
  double cost(const Shape& full_shape) const override;
  void step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const override;

 private:
  void step_compact(const Queue& queue, const ParamPiece& piece, const StepInfo& info) const;
  Settings settings_;
};

}  // namespace osprey
