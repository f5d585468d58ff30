#pragma once
// Weights whose codes jump back and forth between two numbers while they are trained: telemetry.

#include "kernels/block_format.h"
#include "kernels/core/queue.h"
#include "kernels/numerics/oscillation.h"

namespace osprey::kernels {

/// One look at the codes of a matrix. An element has moved when the number of its code, without the scale, is
/// another than at the last look and the scale of its block is the same; it oscillates when it moves against
/// the direction of its last move. `rate` is the running mean of that (see numerics/oscillation.h). The first
/// look of a state of zeros only remembers. Formats whose scales are f32 (of rows and matrices, and of int4
/// groups) change them in nearly every step, so there every change of a code is a move.
/// Shapes: y (N, K) of four bits; state: last (N, K) u8, rate (N, K) f32, scales as y's (N, scales a row) u8
/// or undefined where y's are f32, all contiguous; sums (2) f64, overwritten: elements that oscillated in
/// this look, and elements with a rate above 0.005. Numerics: fp32; counts are exact.
/// Reference: Nagel et al. (arXiv 2203.11086).
struct TrackOscillation {
  Packed y;
  Tensor last, rate, scales, sums;
};
void track_oscillation(const Queue& queue, const TrackOscillation& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void track_oscillation(const Queue& queue, const kernels::TrackOscillation& args);
}
namespace osprey::cuda {
void track_oscillation(const Queue& queue, const kernels::TrackOscillation& args);
}
