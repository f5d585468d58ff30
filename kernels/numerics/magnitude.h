#pragma once
// Rows of a weight as a length and a direction. Host and device.
// Reference: DoRA (Liu et al., arXiv 2402.09353), eq. 5.

#include "kernels/numerics/bf16.h"

namespace osprey {

/// What an output is multiplied by for its row to have this length: the row has `norm` now. A row of zeros
/// has no direction and stays one.
OSPREY_HD float length_factor(float length, float norm) { return norm == 0 ? 0 : length / norm; }

/// The gradient of a length, from the sum of dy times the output that has it; 0 where there is no length.
OSPREY_HD float gradient_of_length(double sum, float length) {
  return length == 0 ? 0 : static_cast<float>(sum / static_cast<double>(length));
}

}  // namespace osprey
