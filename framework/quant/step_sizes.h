#pragma once
// Learnt step sizes (LSQ, Esser et al., arXiv 1902.08153): parameters beside the weight whose scale they are,
// or whose input's. The arithmetic is in kernels/numerics/step_size.h.

#include <string>

#include "framework/quant/scheme.h"

namespace osprey {

/// What step sizes of "layers.0.attn.q.weight", and of its input, are called, as parameters and in files.
struct StepNames {
  explicit StepNames(const std::string& weight);
  std::string of_weight, of_input;  // "layers.0.attn.q.weight_step", "layers.0.attn.q.input_step"
};

bool is_step_size(const std::string& parameter);

/// Is the scale of this operand learnt?
bool learns_step(const std::optional<QuantOperandSpec>& operand);

/// Declares what a group learns of a weight: (1) or (out), of the weight unless it is stored packed, and (1),
/// of the input, for the first of the weights that read it. They are 1 until the group begins.
void declare_steps(ParamStore& params, Parameter& weight, const QuantGroupSpec& group);

}  // namespace osprey
