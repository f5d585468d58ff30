#pragma once
// Updates that do not wait for the end of backward.

#include <vector>

#include "framework/parameter.h"
#include "framework/tape/hooks.h"
#include "framework/train/updater.h"

namespace osprey {

/// Updates each layer as soon as backward has all its gradients, and tables as their rows come, so that of
/// the layers no more than one has gradients at a time; what stands outside of layers and does not come by
/// rows is held whole. For one rank and one micro batch a step: nothing is added to a gradient that was used.
/// There is no norm of all gradients to clip by. Where loss or gradient is not finite, nothing that backward
/// comes to from there on is updated in this step, which counts as skipped; what lies above has moved.
/// Reference: LOMO, Lv et al. 2306.09782, sec. 3.1 (there for SGD).
class UpdatesInBackward final : public LayerHook, public RowSink {
 public:
  /// Becomes the row_sink of all tables by rows of `params`, which was materialized with brief gradients.
  /// `control`: kernels/step_control.h, with this step's loss once the forward is queued.
  UpdatesInBackward(const Queue& queue, ParamStore& params, Updater& updater, const Tensor& control,
                    uint64_t seed);
  ~UpdatesInBackward() override;
  UpdatesInBackward(const UpdatesInBackward&) = delete;
  UpdatesInBackward& operator=(const UpdatesInBackward&) = delete;

  void after_backward(int layer) override;
  void take(Parameter& p, int64_t first, const Tensor& gradient) override;

 private:
  void decide(std::span<const Tensor> gradients);

  Queue queue_;
  ParamStore& params_;
  Updater& updater_;
  Tensor control_;
  uint64_t seed_;
  std::vector<Tensor> gradients_;  // of a layer
};

}  // namespace osprey
