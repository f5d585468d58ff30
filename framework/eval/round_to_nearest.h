#pragma once
// What a model loses when its weights and activations are rounded to integers, without any repair.

#include <optional>
#include <string>
#include <vector>

#include "framework/parameter.h"
#include "framework/tape/tape.h"
#include "kernels/round_to_nearest.h"

namespace osprey {

/// Bits of weights and of activations; an absent one stays as it is.
struct IntegerFormat {
  std::string name;  // "w4a16"
  std::optional<int> weight_bits, activation_bits;
};

/// "w8a8", "w4a16", "w4a4", ... with 2 to 8 bits or 16 (left alone).
/// Errors: throws, showing what a format looks like.
IntegerFormat parse_integer_format(const std::string& text);

/// While it lives, the linear layers inside the blocks of a model are quantized: weights per output row,
/// symmetric; activations per token, asymmetric. Embedding, head, norms and the attention itself stay as they
/// are. Afterwards the weights are what they were. Reference: the evaluation protocol of Outlier-Safe
/// Pre-Training (arXiv 2506.19697), without its rotations.
class QuantizedScope final : public LinearInput {
 public:
  QuantizedScope(Tape& tape, ParamStore& params, const IntegerFormat& format, kernels::ClipSearch clip);
  ~QuantizedScope() override;
  QuantizedScope(const QuantizedScope&) = delete;
  QuantizedScope& operator=(const QuantizedScope&) = delete;

  Tensor linear_input(Tape& t, const std::string& weight, const Tensor& x) override;

 private:
  Tape& tape_;
  IntegerFormat format_;
  std::vector<std::pair<Parameter*, std::vector<char>>> saved_;
};

/// layers.N.{attn,mlp}.{q,k,v,o,gate,up,down}.weight: what the protocol quantizes.
bool is_block_linear(const std::string& parameter);

}  // namespace osprey
