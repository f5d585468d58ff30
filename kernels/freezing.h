#pragma once
// Weights that stand still because they round with confidence: around an optimizer's update.

#include "kernels/block_format.h"
#include "kernels/core/queue.h"
#include "kernels/numerics/freezing.h"

namespace osprey::kernels {

/// Before an update: which elements stand still in this step, see numerics/freezing.h. Their gradient becomes
/// 0, and `held` is their master; NaN for those that may move.
/// Shapes: held, grad, master (n) in any shape, f32, contiguous: elements [first, first + n) of a matrix in
/// the order of its rows; y the whole matrix (N, K) as forward quantized it, whose scales decide; step (1)
/// f64, the 0-based number of the step; frozen (1) f64, overwritten: how many of the n stand still.
struct HoldFrozen {
  Tensor held, grad, master;
  Packed y;
  int64_t first = 0;
  FreezeSchedule schedule;
  Tensor step, frozen;
};
void hold_frozen(const Queue& queue, const HoldFrozen& args);

/// After it: what stands still gets back its master, and its value from that.
/// Shapes: held, master f32, value f32 or bf16, of n elements, contiguous; value may be master.
struct RestoreFrozen {
  Tensor value, master, held;
};
void restore_frozen(const Queue& queue, const RestoreFrozen& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void hold_frozen(const Queue& queue, const kernels::HoldFrozen& args);
void restore_frozen(const Queue& queue, const kernels::RestoreFrozen& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void hold_frozen(const Queue& queue, const kernels::HoldFrozen& args);
void restore_frozen(const Queue& queue, const kernels::RestoreFrozen& args);
}  // namespace osprey::cuda
