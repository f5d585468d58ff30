#pragma once
// Which linear layers compute with packed numbers, and how: the `quant` section of a recipe, and what becomes
// of it.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "framework/config/fields.h"
#include "framework/memory/arena.h"
#include "framework/parameter.h"
#include "framework/quant/patterns.h"
#include "framework/train/trainer.h"
#include "kernels/numerics/freezing.h"
#include "kernels/quantize.h"

namespace osprey {

/// Scale rules by the names that recipes and checkpoints have for them.
std::span<const std::pair<const char*, ScaleRule>> scale_rules();

/// How one operand of a product is quantized.
struct QuantOperandSpec {
  std::string format = "mxfp4";
  ScaleRule scale = ScaleRule::even;
  kernels::Rounding::Kind rounding = kernels::Rounding::Kind::nearest_even;

  void fields(Fields& f);
  const BlockFormat& block_format() const { return osprey::block_format(format); }
  bool operator==(const QuantOperandSpec&) const = default;
};

/// Confidence-guided freezing, of a group.
struct QuantFreezeSpec {
  int64_t first_step = 0;
  std::optional<int64_t> first_tokens;
  double boundary = 0.005;
  int64_t anneal_steps = 0;

  void fields(Fields& f);
  bool operator==(const QuantFreezeSpec&) const = default;
};

/// Which elements of a weight an update leaves alone: numerics/freezing.h.
struct Freezing {
  FreezeSchedule schedule;
};

/// One entry of the list. The first entry whose pattern matches a linear layer's weight takes it; layers that
/// none matches stay as they are.
struct QuantGroupSpec {
  enum class Preset {
    none,
    qat_mxfp4_w4a4,
    quartet,
    nvfp4,
    mxint8,
    weight_only,
    down_8bit_input,
    lsq,
    adahop
  };
  enum class GradientMask { straight_through, unclipped };
  enum class Rotate { always, measured };
  enum class AnnealOrder { first_layers, last_layers };

  std::string match = "layers.*.{attn.q,attn.k,attn.v,attn.o,mlp.gate,mlp.up,mlp.down}.weight";
  Preset preset = Preset::none;
  std::optional<QuantOperandSpec> weights, activations, gradients;
  int64_t rotation = 0;
  int64_t backward_rotation = 0;
  Rotate rotate = Rotate::always;
  int64_t calibration_steps = 30;
  double outlier_ratio = 4;
  int64_t outlier_rows = 0;
  GradientMask gradient_mask = GradientMask::straight_through;
  int64_t first_step = 0;
  std::optional<int64_t> end_step, first_tokens, end_tokens;
  int64_t anneal_steps = 0;
  AnnealOrder anneal_order = AnnealOrder::first_layers;
  std::optional<QuantFreezeSpec> freeze;

  void fields(Fields& f);
  bool measured() const { return rotate == Rotate::measured; }

 private:
  void apply(Preset p);
  Preset applied_ =
      Preset::none;  // a preset sets what follows it once, so that a dumped recipe reads back the same
};

/// How a linear layer is computed while its group is active.
///
/// Forward: y = Q(x) Q(W)^T, both in a rotated basis where the group says so; an operand without a format
/// stays in the compute dtype. Backward without `gradients`: the products of the plain layer on the
/// dequantized operands, in the rotated basis; with it: dx = Q(dy) Q(Q(W)^T)^T and dW = Q(dy^T) Q(Q(x)^T)^T,
/// every operand in the gradients' format with blocks along what is summed, and rotated alike in each product
/// by signs that are new in each step. Then the mask, if any, and back to the unrotated basis. Rounding is
/// otherwise passed through. Reference: Castro et al., "Quartet" (arXiv 2505.14669), algorithm 1; Panferov et
/// al., "QuEST" (2502.05003), for the mask.
///
/// A group whose rotations are measured has two schemes for each matrix: while it calibrates, the layer
/// computes as if it had none and counts in `votes`; then `rotated` says which products its sizes of
/// rotations are for, and `extracted` in which the group's outlier_rows are computed unquantized: of the rows
/// of x, or of dy, with the largest sums of squares, chosen anew in each product, y = x W^T and dx = dy W on
/// the weights as they are.
struct QuantScheme {
  const QuantGroupSpec* spec = nullptr;
  size_t group = 0;   // which entry of the recipe's list
  uint64_t seed = 0;  // of rotations and stochastic rounding
  bool calibrates = false;
  Tensor votes = {};    // (3, outlier_patterns) f64 while it calibrates: of x, W and dy
  bool decided = true;  // `rotated` holds
  RotatedProducts rotated = {};
  ExtractedProducts extracted = {};

  /// How many rows of y, and of dx, are computed unquantized.
  int64_t forward_rows() const { return extracted.forward ? spec->outlier_rows : 0; }
  int64_t dx_rows() const { return extracted.dx ? spec->outlier_rows : 0; }
};

/// The rotation of forward's operands where a layer is rotated: the same for all layers, a function of the
/// run's seed.
kernels::Rotation forward_rotation(const QuantGroupSpec& group, uint64_t seed);

/// The 0-based steps in which a group is active: [begin, end). It calibrates in [begin, quantizes()), then
/// its layers join one after another, at equal distances in [quantizes(), quantizes() + anneal).
struct QuantSpan {
  int64_t begin = 0, end = INT64_MAX, calibration = 0, anneal = 0;
  int64_t quantizes() const { return begin + calibration; }
  /// Where layer number `index` of `layers`, counted in the order in which they join, begins to be quantized.
  int64_t joins(int64_t index, int64_t layers) const { return quantizes() + anneal * index / layers; }
};
/// Units: `step_tokens` are the tokens of a step. Tokens of the recipe become the first step that begins at
/// or after so many. Errors: tokens where step_tokens is 0, that is, unknown.
QuantSpan span_of(const QuantGroupSpec& group, int64_t step_tokens);
/// The first group whose pattern matches this parameter, or null.
const QuantGroupSpec* first_match(std::span<const QuantGroupSpec> groups, const std::string& parameter);
/// The 0-based step from which on weights of a group with `freeze` may stand still; units and errors as
/// above.
int64_t freezes_from(const QuantGroupSpec& group, int64_t step_tokens);

/// A weight that some group quantizes, and the format in which it does.
struct WeightInFormat {
  const Parameter* parameter = nullptr;
  BlockFormat format;
};

/// The schemes of a run: one for each entry, or each matrix of an entry that measures, and which parameter
/// has which. As a hook of the trainer it switches them on and off, as a function of the step alone, decides
/// when a calibration is over, and gives learnt step sizes their first values.
class QuantSchemes final : public StepHook {
 public:
  /// Declares the step sizes that groups learn, so `params` has no memory yet where one does.
  /// `step_tokens`: tokens of a step, for groups that begin or end at a token; see span_of().
  /// Errors: one Error that lists every pattern that is malformed, matches nothing or comes too late, every
  /// parameter that is no linear layer of a block, every width that a format's blocks do not divide, and
  /// every group that ends before it has begun.
  QuantSchemes(std::span<const QuantGroupSpec> groups, ParamStore& params, uint64_t seed,
               int64_t step_tokens = 0);
  /// Leaves the parameters unquantized, without what was kept of them.
  ~QuantSchemes() override;
  QuantSchemes(const QuantSchemes&) = delete;
  QuantSchemes& operator=(const QuantSchemes&) = delete;

  /// Takes memory for votes, and clears them. Before any step of groups that measure.
  void materialize(const Queue& queue);
  int64_t votes_bytes() const { return memory_ ? memory_->used_bytes() : 0; }

  /// Sets Parameter::scheme and Parameter::freezing to what holds in 0-based step `step`.
  void activate(int64_t step) const;
  /// 0 and every step in which a layer begins or ends to be calibrated or quantized, in order.
  std::vector<int64_t> changes() const;
  /// For people: when each group begins and ends in a run of so many steps, a line each.
  std::vector<std::string> timeline(int64_t total_steps) const;
  /// All weights whose format has so many bits, whenever their group is active.
  std::vector<WeightInFormat> weights_of(int bits) const;

  /// Of every input that is measured, by the first weight that reads it, summed over ranks. Collective.
  std::vector<LayerPatterns> patterns(const Queue& queue, Communicator& world) const;
  /// As if the run had come to 0-based step `step` by itself: what held in the step before is switched on, as
  /// an evaluation there would find it, and what patterns() gave goes to rank 0, or, where a calibration is
  /// over, becomes its decision. Errors: a group has begun before this step, and `state` does not know its
  /// layers.
  void restore(const Queue& queue, int rank, std::span<const LayerPatterns> state, int64_t step);
  /// Takes over decisions alone, for evaluation. Errors: there are none for a group that measures.
  void decide_as(std::span<const LayerPatterns> state);

  /// Told once, on every rank, when a calibration is over: before 0-based step `step`, in which its first
  /// layers are quantized.
  std::function<void(int64_t step, std::span<const LayerPatterns>)> on_decision;

  void before_step(Trainer& trainer, int64_t step) override;
  bool reads_state(int64_t finished) const override;

 private:
  std::vector<QuantGroupSpec> specs_;
  std::deque<QuantScheme> schemes_;  // those of groups, then those of matrices
  std::vector<QuantSpan> spans_;     // of the groups
  int64_t step_tokens_;
  struct Member {
    Parameter* parameter;
    QuantScheme* scheme;
    QuantScheme* calibrating;  // null where nothing is measured
    int64_t begin;             // step in which it joins
    std::optional<Freezing> freezing = {};
  };
  std::vector<Member> members_;
  std::unique_ptr<Arena> memory_;
  Tensor votes_;  // (matrices that are measured, 3 * outlier_patterns) f64

  bool measures() const;
  /// Gives the steps of layers that join now their first values, which follow from the weights and from what
  /// the layers read, unquantized, of the batch of this very step.
  void begin_steps(Trainer& trainer, int64_t step);
  void decide(const Queue& queue, Communicator& world, int64_t step);
  /// Of the group's matrices, each layer once, in the order in which they join.
  std::vector<int> layers_in_order(size_t group) const;
};

/// "mxfp4", or what plain operands are called: for run records and messages.
std::string operand_name(const std::optional<QuantOperandSpec>& operand, DType compute);

}  // namespace osprey
