#pragma once
// Weights that stand still in an update (confidence-guided annealing of OFQ, arXiv 2302.02210): how far each
// is from rounding to another code decides anew in every step, so there is nothing to remember between steps.

#include <memory>
#include <string>
#include <vector>

#include "framework/quant/scheme.h"
#include "framework/train/updater.h"

namespace osprey {

/// Of the pieces that this rank updates. Around an update:
///   freezer.hold(step);     // once gradients are summed over ranks, before their norm
///   updater.step(...);
///   freezer.restore();
class WeightFreezer {
 public:
  /// `params` and `updater` outlive it.
  WeightFreezer(const Queue& queue, const ParamStore& params, const Updater& updater);

  /// Of weights with Parameter::freezing: keeps the masters of the elements that stand still, and makes their
  /// gradients 0. `step` (1) f64 on the device. Memory: 4 bytes for each element that this rank updates,
  /// taken when a weight is first seen. Errors: throws where forward has not quantized the weight.
  void hold(const Tensor& step);
  /// Gives them their masters and values back, whatever the optimizer did.
  void restore();

  struct Count {
    std::string weight;
    double frozen = 0, elements = 0;
  };
  /// Of the pieces that the last hold() saw. Waits for the queue's work.
  std::vector<Count> counts() const;
  int64_t bytes() const;

 private:
  struct Held {
    const ParamPiece* piece;
    const Parameter* parameter;
    std::unique_ptr<Arena> memory;
    Tensor master, frozen;
  };
  bool stands(const Held& h) const { return h.parameter->freezing != nullptr; }
  Queue queue_;
  std::vector<Held> held_;
};

}  // namespace osprey
