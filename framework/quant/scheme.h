#pragma once
// Which linear layers compute with packed numbers, and how: the `quant` section of a recipe, and what becomes
// of it.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/config/fields.h"
#include "framework/parameter.h"
#include "framework/train/trainer.h"
#include "kernels/quantize.h"

namespace osprey {

/// How one operand of a product is quantized.
struct QuantOperandSpec {
  std::string format = "mxfp4";
  ScaleRule scale = ScaleRule::even;
  kernels::Rounding::Kind rounding = kernels::Rounding::Kind::nearest_even;

  void fields(Fields& f);
  const BlockFormat& block_format() const { return osprey::block_format(format); }
  bool operator==(const QuantOperandSpec&) const = default;
};

/// One entry of the list. The first entry whose pattern matches a linear layer's weight takes it; layers that
/// none matches stay as they are.
struct QuantGroupSpec {
  enum class Preset { none, qat_mxfp4_w4a4, quartet, nvfp4, mxint8, weight_only };
  enum class GradientMask { straight_through, unclipped };

  std::string match = "layers.*.{attn.q,attn.k,attn.v,attn.o,mlp.gate,mlp.up,mlp.down}.weight";
  Preset preset = Preset::none;
  std::optional<QuantOperandSpec> weights, activations, gradients;
  int64_t rotation = 0;
  int64_t backward_rotation = 0;
  GradientMask gradient_mask = GradientMask::straight_through;
  int64_t first_step = 0;
  std::optional<int64_t> end_step;

  void fields(Fields& f);

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
struct QuantScheme {
  const QuantGroupSpec* spec = nullptr;
  size_t group = 0;   // which entry of the recipe's list
  uint64_t seed = 0;  // of rotations and stochastic rounding
};

/// A weight that some group quantizes, and the format in which it does.
struct WeightInFormat {
  const Parameter* parameter = nullptr;
  BlockFormat format;
};

/// The schemes of a run: one for each entry, and which parameter has which. As a hook of the trainer it
/// switches them on and off.
class QuantSchemes final : public StepHook {
 public:
  /// Errors: one Error that lists every pattern that is malformed, matches nothing or comes too late, every
  /// parameter that is no linear layer of a block, and every width that a format's blocks do not divide.
  QuantSchemes(std::span<const QuantGroupSpec> groups, const ParamStore& params, uint64_t seed);
  /// Leaves the parameters unquantized, without what was kept of them.
  ~QuantSchemes() override;
  QuantSchemes(const QuantSchemes&) = delete;
  QuantSchemes& operator=(const QuantSchemes&) = delete;

  /// Sets Parameter::scheme to what holds in 0-based step `step`.
  void activate(int64_t step) const;
  /// 0 and every step in which a group begins or ends, in order.
  std::vector<int64_t> changes() const;
  /// All weights whose format has so many bits, whenever their group is active.
  std::vector<WeightInFormat> weights_of(int bits) const;

  void before_step(Trainer&, int64_t step) override { activate(step); }
  bool reads_state(int64_t) const override { return false; }

 private:
  std::vector<QuantGroupSpec> specs_;
  std::vector<QuantScheme> schemes_;
  struct Member {
    Parameter* parameter;
    const QuantScheme* scheme;
  };
  std::vector<Member> members_;
};

/// "mxfp4", or what plain operands are called: for run records and messages.
std::string operand_name(const std::optional<QuantOperandSpec>& operand, DType compute);

}  // namespace osprey
