#pragma once
// Newton-Schulz iterations: an odd matrix polynomial that pushes all singular values of a matrix towards
// one, with products only.

#include <cstdint>
#include <span>

#include "kernels/core/queue.h"

namespace osprey {

/// polar_express: the five-step schedule that is optimal for singular values in [1e-3, 1] (with safety
///   factor 1.02): afterwards they lie in [0.85, 1.14]. The order of the steps matters.
/// keller: one quintic with a steep start (485 at zero), repeated; singular values of at least 1e-2 end up in
///   [0.68, 1.13] after five steps. Neither returns an orthogonal matrix, and neither has to.
/// Reference: Amsel et al., "The Polar Express" (arXiv 2505.16932); Jordan et al., "Muon" (2024).
enum class NewtonSchulz { polar_express, keller };
const char* name(NewtonSchulz method);

/// One step: X <- a X + b (X X^T) X + c (X X^T)^2 X.
struct Quintic {
  double a, b, c;
};

/// The step at `index`. polar_express has five.
/// Errors: throws past the last step.
Quintic newton_schulz_step(NewtonSchulz method, int index);

/// What the Frobenius norm is multiplied by before the division, so that rounding cannot push a singular
/// value out of the schedule's interval.
double newton_schulz_safety(NewtonSchulz method);

/// What newton_schulz works in. x holds B inputs (M, N), M <= N, each with Frobenius norm <= 1.
struct NewtonSchulzBuffers {
  Tensor x, y;              // (B, M, N), bf16 or f32
  Tensor gram, polynomial;  // (B, M, M), the same dtype

  /// Elements of all four together, each starting at a multiple of 32 elements.
  static int64_t elements(int64_t batch, int64_t m, int64_t n);
  /// Cuts the four from memory of at least elements() * size_bytes(dtype) bytes, 64-byte aligned.
  static NewtonSchulzBuffers cut(void* memory, int64_t batch, int64_t m, int64_t n, DType dtype,
                                 Device device);
};

/// Runs `steps` iterations and returns the one of x, y that holds the results; the other buffers are
/// overwritten. Numerics: products with fp32 sums, one rounding to the buffers' dtype each; 3 M^2 N + M^3
/// products a step (the symmetric ones once). On a CPU the result depends neither on the number of threads
/// nor on B; on a GPU as little on B as its library's choice of algorithm does. A zero matrix stays zero.
Tensor newton_schulz(const Queue& queue, const NewtonSchulzBuffers& buffers, NewtonSchulz method, int steps);

/// Floating-point operations of newton_schulz on an (m, n) or (n, m) matrix.
double newton_schulz_flops(int64_t m, int64_t n, int steps);

}  // namespace osprey
