#pragma once
// How much the quantized operands of a training step lose: measured while the step runs, on what it computes
// with.
//
//   QuantizationObserver observer(queue, params);
//   trainer.watch_quantization(&observer);
//   observer.begin_step(true);  // before the step
//   for (const QuantizationRow& row : observer.result(comm)) log.write(quantization_entry(row, step,
//   tokens));

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/memory/arena.h"
#include "framework/parallel/communicator.h"
#include "framework/parameter.h"
#include "framework/quant/freezer.h"
#include "framework/tape/hooks.h"
#include "framework/telemetry/metrics_log.h"
#include "framework/telemetry/oscillation.h"
#include "framework/telemetry/tfevents.h"

namespace osprey {

/// "weights", "activations" or "gradients".
const char* name(QuantizationWatch::Role role);

/// One operand of one layer in one step, over all of its micro batches and ranks. Shares are of all elements
/// or rows. Reference: the log of MXFP4 training runs asks for these figures by layer and operand.
struct QuantizationRow {
  QuantizationWatch::Role role = QuantizationWatch::Role::weights;
  int layer = -1;
  std::string weight;                    // "attn.q"; of activations, the first weight that reads them
  int64_t elements = 0;                  // measured
  std::optional<double> relative_error;  // sum (q - x)^2 / sum x^2; absent where all x are 0
  double clipped = 0;                    // share of elements beyond the largest of their block's format
  double underflow = 0;                  // share of elements that are not 0, and became 0
  double wide_rows_3 = 0;                // share of rows whose largest scale is over 2^3 times the smallest
  double wide_rows_14 = 0;               // the same with 2^14
  std::optional<double> oscillated;      // of weights that are followed: see OscillationTracker
  std::optional<double> oscillating;
  std::optional<double> frozen;  // share of weights that stand still, where they may
};

class QuantizationObserver final : public QuantizationWatch {
 public:
  /// Memory: 192 bytes for each matrix of the layers, taken here, and what following `oscillation` takes.
  /// `params`, and `oscillation` and `freezer`, which may be null, outlive it.
  QuantizationObserver(const Queue& queue, const ParamStore& params,
                       OscillationTracker* oscillation = nullptr, const WeightFreezer* freezer = nullptr);

  /// Comes before every step that it watches. Of a step that is not `measured` it keeps nothing.
  void begin_step(bool measured);
  bool this_step_only() const override { return measured_; }
  void quantized(int layer, const std::string& weight, Role role,
                 const kernels::MeasureQuantization& what) override;

  /// What the last measured step lost: by role, then in the order of the parameters. Weights are the same on
  /// all ranks and count once, and rank 0 alone need follow their oscillation. Waits for the step's work.
  /// Numerics: f64, sums in the order of micro batches and ranks, so every rank gets the same bits.
  /// Collective.
  std::vector<QuantizationRow> result(Communicator& world);

 private:
  static constexpr size_t roles = 3;
  size_t slot(size_t weight, Role role) const { return weight * roles + static_cast<size_t>(role); }

  Queue queue_;
  std::vector<const Parameter*> weights_;
  std::map<std::string, size_t> places_;  // in weights_, by name
  std::unique_ptr<Arena> memory_;
  Tensor sums_;  // (slots, quantization_sums) f64
  OscillationTracker* oscillation_;
  const WeightFreezer* freezer_;
  std::vector<char> seen_;  // of the slots, in the step that was measured last
  bool measured_ = false;
};

/// The "quantization" entry of one row.
MetricsEntry quantization_entry(const QuantizationRow& row, int64_t step, int64_t tokens);
/// "quantization/weights/layer_03/attn.q/relative_error", and of the other figures the mean over all rows of
/// a role: "quantization/weights/mean/clipped".
void write_quantization(TfEventsWriter& writer, int64_t step, const std::vector<QuantizationRow>& rows);

}  // namespace osprey
