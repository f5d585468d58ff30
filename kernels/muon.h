#pragma once
// The element-wise parts of Muon. The orthogonalisation between them is optim/newton_schulz.h.

#include "kernels/step_control.h"

namespace osprey::kernels {

enum class Momentum : uint8_t { plain, nesterov };
/// Is `x` stored like the parameter, or transposed? Newton-Schulz wants at most as many rows as columns.
enum class Layout : uint8_t { same, transposed };

/// momentum = beta momentum + grad_scale grad;  sum_of_squares = |u|^2, where the direction u is
///   momentum (plain)   or   grad_scale grad + beta momentum (nesterov).
/// grad_scale is read from `control`; when its step_apply is 0, momentum stays as it is and the sum is 0.
/// Shapes: momentum and grad have one element count, f32, contiguous; sum_of_squares (1) f64.
/// Numerics: u in fp32, the sum in double over chunks fixed by the element count: independent of threads.
struct MuonMomentum {
  Tensor momentum;
  Tensor grad;
  double beta = 0.95;
  Momentum form = Momentum::nesterov;
  Tensor sum_of_squares;
  Tensor control;  // see kernels/step_control.h
};
void muon_momentum(const Queue& queue, const MuonMomentum& args);

/// x = u / (safety |u|), with u as above from the momentum that muon_momentum has updated and |u| the root of
/// its sum_of_squares; 0 where safety |u| < 1e-30.
/// Shapes: momentum, grad (out, in); x (out, in), or (in, out) when transposed; x is f32 or bf16.
/// Numerics: scaled in fp32, rounded once.
struct MuonDirection {
  Tensor x;
  Tensor momentum;
  Tensor grad;
  double beta = 0.95;
  Momentum form = Momentum::nesterov;
  Tensor sum_of_squares;
  double safety = 1;
  Layout layout = Layout::same;
  Tensor control;
};
void muon_direction(const Queue& queue, const MuonDirection& args);

/// master -= factor (step_size x + decay master);  value = master rounded; factor is `control`'s
/// step_learning_rate_factor. Nothing changes when its step_apply is 0.
/// Shapes: value, master (out, in); x (out, in), or (in, out) when transposed; x is f32 or bf16.
/// Aliasing: `value` is `master` itself when it is f32.
struct MuonUpdate {
  Tensor value;
  Tensor master;
  Tensor x;
  double step_size = 0;
  double decay = 0;
  Layout layout = Layout::same;
  Tensor control;
};
void muon_update(const Queue& queue, const MuonUpdate& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void muon_momentum(const Queue& queue, const kernels::MuonMomentum& args);
void muon_direction(const Queue& queue, const kernels::MuonDirection& args);
void muon_update(const Queue& queue, const kernels::MuonUpdate& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void muon_momentum(const Queue& queue, const kernels::MuonMomentum& args);
void muon_direction(const Queue& queue, const kernels::MuonDirection& args);
void muon_update(const Queue& queue, const kernels::MuonUpdate& args);
}  // namespace osprey::cuda
