#pragma once
// Copies between views of equal shape, converting where the types differ.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::cpu {

/// to = from, rounding to nearest even where `to` is bf16.
/// Shapes: equal, two or three dimensions; f32 and bf16 convert, any one dtype is copied; rows may be
/// strided.
void copy_matrix(const Queue& queue, const Tensor& to, const Tensor& from);

}  // namespace osprey::cpu
