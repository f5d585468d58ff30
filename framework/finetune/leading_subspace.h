#pragma once
// The subspace of the leading singular vectors of a gradient.

#include "framework/parameter.h"

namespace osprey {

struct LeadingSubspace {
  Tensor gradient;  // (out, in) f32, contiguous
  Subspace::Side side = Subspace::Side::right;
  int64_t rank = 0;
  bool exact = false;  // by a full singular value decomposition; else by a randomized range finder
  uint64_t seed = 0, stream = 0, draw = 0;  // of the range finder
};

/// The leading `rank` left or right singular vectors as rows, (rank, out) or (rank, in), in the host's
/// memory, greatest singular value first. Nothing where the gradient is zero or not finite: the caller keeps
/// what it has. Numerics: randomized: 8 more columns than the rank and one power iteration (Halko et al.
/// 0909.4061, algorithms 4.4 and 5.1); products with the gradient in fp32 on the queue's device, everything
/// small in double on the host. The same bits on every run on the same device. Waits for the queue.
std::vector<float> leading_subspace(const Queue& queue, const LeadingSubspace& args);

/// An orthonormal basis where there is no gradient to take one from: (rank, cols), from normal draws.
std::vector<float> random_subspace(int64_t rank, int64_t cols, uint64_t seed, uint64_t stream);

/// Turns rows of `basis` around so that none points away from the same row of `before`; both (rank, cols).
void align_signs(std::vector<float>& basis, const std::vector<float>& before, int64_t rank);

}  // namespace osprey
