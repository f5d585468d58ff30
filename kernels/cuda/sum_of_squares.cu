#include "kernels/sum_of_squares.h"

#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sums.h"

namespace osprey::cuda {

namespace {

constexpr int groups = 4;  // of four elements, whose loads a thread has in flight together
constexpr int pass = sum_threads * groups * 4;
constexpr int64_t chunk = 4 * pass;  // elements of a block

/// As many as fit, with the rest of the arguments, into 4 KB of kernel parameters.
constexpr int max_tensors = 160;

// Eight bytes a member, as in adamw.cu.
struct Parameters {
  const float* xs[max_tensors];
  int64_t counts[max_tensors];
  int64_t first_block[max_tensors + 1];  // tensor i has the blocks [first_block[i], first_block[i + 1])
  int64_t count;
  double* partial;  // of the first block
};
static_assert(sizeof(Parameters) <= 4096);

__global__ void __launch_bounds__(sum_threads) sums(const Parameters p) {
  int index = 0, high = static_cast<int>(p.count);
  while (high - index > 1) {
    const int middle = (index + high) / 2;
    (p.first_block[middle] <= blockIdx.x ? index : high) = middle;
  }
  const float* x = p.xs[index];
  const int64_t begin = (blockIdx.x - p.first_block[index]) * chunk;
  const int64_t end = begin + chunk < p.counts[index] ? begin + chunk : p.counts[index];
  double total = 0;
  for (int64_t at = begin + static_cast<int64_t>(threadIdx.x) * 4; at < end; at += pass) {
    Four four[groups];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int64_t i = at + g * sum_threads * 4;
      four[g] = load_four(x + i, end - i);
    }
#pragma unroll
    for (int g = 0; g < groups; ++g)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        total += static_cast<double>(four[g].v[j]) * static_cast<double>(four[g].v[j]);
  }
  SumShared& shared = block_shared<SumShared>();
  total = block_sum(total, shared.warps);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = total;
}

int64_t chunks_of(const Tensor& x) { return (x.numel() + chunk - 1) / chunk; }

}  // namespace

void sum_of_squares(const Queue& queue, const kernels::SumOfSquares& args) {
  int64_t blocks = 0;
  for (const Tensor& x : args.xs) blocks += chunks_of(x);
  if (blocks == 0) return;
  double* partial =
      static_cast<double*>(stream_of(queue).scratch(blocks * static_cast<int64_t>(sizeof(double))));
  Parameters p{};
  p.partial = partial;
  const auto flush = [&] {
    launch("sum_of_squares", queue,
           {dim3(static_cast<unsigned>(p.first_block[p.count])), dim3(sum_threads), sizeof(SumShared)}, sums,
           p);
    p.partial += p.first_block[p.count];
    p.count = 0;
  };
  for (const Tensor& x : args.xs) {
    if (x.numel() == 0) continue;
    p.xs[p.count] = x.as<float>();
    p.counts[p.count] = x.numel();
    p.first_block[p.count + 1] = p.first_block[p.count] + chunks_of(x);
    if (++p.count == max_tensors) flush();
  }
  if (p.count > 0) flush();
  launch("sum_of_squares", queue, {dim3(1), dim3(sum_final_threads), sizeof(SumShared)}, final_sum,
         FinalSum{.partial = partial, .count = blocks, .sum = args.sum.as<double>(), .into = Into::add});
}

}  // namespace osprey::cuda
