#include "kernels/adamw.h"

#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/numerics/adamw.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;
constexpr int groups = 2;  // of four elements, whose loads a thread has in flight together
constexpr int pass = threads * groups * 4;
constexpr int64_t chunk = 8 * pass;  // elements of a block

struct Piece {
  bf16* value;  // null: only master is written
  float *master, *m, *v;
  const float* grad;
  int64_t count;
};

/// As many as fit, with the rest of the arguments, into 4 KB of kernel parameters.
constexpr int max_pieces = 64;

// Eight bytes a member: two smaller ones could look like a pointer to the host, which tests look for.
struct Parameters {
  Piece pieces[max_pieces];
  int64_t first_block[max_pieces + 1];  // piece i has the blocks [first_block[i], first_block[i + 1])
  int64_t count, since;
  AdamWConstants constants;
  const double* control;
};
static_assert(sizeof(Parameters) <= 4096);

struct Shared {
  AdamWFactors factors;
};

/// The last piece that begins at or before this block.
__device__ int piece_of(const Parameters& p, int64_t block) {
  int low = 0, high = static_cast<int>(p.count);
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

__global__ void __launch_bounds__(threads, 3) update(const __grid_constant__ Parameters p) {
  if (p.control[kernels::step_apply] == 0) return;
  Shared& shared = block_shared<Shared>();
  if (threadIdx.x == 0) {
    AdamWConstants c = p.constants;
    c.learning_rate *= p.control[kernels::step_learning_rate_factor];
    shared.factors = adamw_factors(c, static_cast<int64_t>(p.control[kernels::step_number]) - p.since,
                                   p.control[kernels::step_grad_scale]);
  }
  __syncthreads();
  const AdamWFactors f = shared.factors;
  const int index = piece_of(p, blockIdx.x);
  const Piece piece = p.pieces[index];
  const int64_t begin = (blockIdx.x - p.first_block[index]) * chunk;
  const int64_t end = begin + chunk < piece.count ? begin + chunk : piece.count;
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * 4; at < end; at += pass) {
    Four master[groups], m[groups], v[groups], grad[groups];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4, left = end - i;
      master[g] = load_four(piece.master + i, left);
      m[g] = load_four(piece.m + i, left);
      v[g] = load_four(piece.v + i, left);
      grad[g] = load_four(piece.grad + i, left);
    }
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * threads * 4, left = end - i;
#pragma unroll
      for (int j = 0; j < 4; ++j) adamw_element(master[g].v[j], m[g].v[j], v[g].v[j], grad[g].v[j], f);
      store_four(piece.master + i, left, master[g]);
      store_four(piece.m + i, left, m[g]);
      store_four(piece.v + i, left, v[g]);
      if (piece.value) store_four(piece.value + i, left, master[g]);
    }
  }
}

}  // namespace

void adamw(const Queue& queue, const kernels::AdamW& args) {
  Parameters p{};
  p.constants = {args.learning_rate, args.beta1, args.beta2, args.eps, args.weight_decay, args.eps_place};
  p.control = args.control.as<double>();
  p.since = args.since;
  const auto flush = [&] {
    launch("adamw", queue,
           {dim3(static_cast<unsigned>(p.first_block[p.count])), dim3(threads), sizeof(Shared)}, update, p);
    p.count = 0;
  };
  for (const kernels::AdamWPiece& piece : args.pieces) {
    const int64_t count = piece.master.numel();
    if (count == 0) continue;
    p.pieces[p.count] = {piece.value.dtype == DType::bf16 ? piece.value.as<bf16>() : nullptr,
                         piece.master.as<float>(),
                         piece.m.as<float>(),
                         piece.v.as<float>(),
                         piece.grad.as<float>(),
                         count};
    p.first_block[p.count + 1] = p.first_block[p.count] + (count + chunk - 1) / chunk;
    if (++p.count == max_pieces) flush();
  }
  if (p.count > 0) flush();
}

}  // namespace osprey::cuda
