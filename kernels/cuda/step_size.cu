#include "kernels/step_size.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/step_size.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;
constexpr int64_t most_chunks = 256;  // of rows that share a step

struct SlopeShared {
  double sums[threads / warp_size];
};

// Eight bytes a member.
struct Slopes {
  const void *x, *dy, *step;
  int64_t x_half, dy_half, step_half;  // bf16, else f32
  int64_t x_stride, dy_stride, rows, cols, steps, element;
  double* partial;
};

__device__ inline float number_at(const void* p, int64_t half, int64_t i) {
  return half ? to_float(static_cast<const bf16*>(p)[i]) : static_cast<const float*>(p)[i];
}

/// Block i sums over a run of rows, into partial[i].
__global__ void __launch_bounds__(threads) sum_slopes(const Slopes a) {
  SlopeShared& shared = block_shared<SlopeShared>();
  const auto e = static_cast<Element>(a.element);
  const int64_t begin = a.rows * blockIdx.x / gridDim.x, end = a.rows * (blockIdx.x + int64_t{1}) / gridDim.x;
  double sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float step = number_at(a.step, a.step_half, a.steps > 1 ? row : 0),
                inverse = inverse_f32(used_step(step) * steps_per_unit(e));
    for (int64_t col = threadIdx.x; col < a.cols; col += threads) {
      const float x = number_at(a.x, a.x_half, row * a.x_stride + col),
                  dy = number_at(a.dy, a.dy_half, row * a.dy_stride + col);
      sum += static_cast<double>(dy) * static_cast<double>(slope_by_step(e, x * inverse));
    }
  }
  sum = block_sum(sum, shared.sums);
  if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}

/// A thread for each step adds up its chunks in order.
__global__ void add_chunks(const double* partial, int64_t chunks, int64_t steps, double factor, float* dstep,
                           int64_t add) {
  const int64_t s = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (s >= steps) return;
  double total = 0;
  for (int64_t i = chunks * s / steps; i < chunks * (s + 1) / steps; ++i) total += partial[i];
  dstep[s] = (add ? dstep[s] : 0.0f) + static_cast<float>(factor * total);
}

}  // namespace

void step_gradient(const Queue& queue, const kernels::StepGradient& a) {
  const int64_t rows = a.x.rows(), steps = a.step.numel(),
                chunks = steps > 1 ? steps : std::min(rows, most_chunks);
  auto* partial =
      static_cast<double*>(stream_of(queue).scratch(chunks * static_cast<int64_t>(sizeof(double))));
  const auto half = [](const Tensor& t) { return int64_t{t.dtype == DType::bf16}; };
  launch("step_gradient", queue,
         {.blocks = static_cast<unsigned>(chunks), .threads = threads, .shared_bytes = sizeof(SlopeShared)},
         sum_slopes,
         Slopes{.x = a.x.data,
                .dy = a.dy.data,
                .step = a.step.data,
                .x_half = half(a.x),
                .dy_half = half(a.dy),
                .step_half = half(a.step),
                .x_stride = a.x.row_stride(),
                .dy_stride = a.dy.row_stride(),
                .rows = rows,
                .cols = a.x.cols(),
                .steps = steps,
                .element = static_cast<int64_t>(a.element),
                .partial = partial});
  launch("step_gradient", queue,
         {.blocks = static_cast<unsigned>((steps + threads - 1) / threads), .threads = threads}, add_chunks,
         partial, chunks, steps, a.factor, a.dstep.tensor.as<float>(), int64_t{a.dstep.add});
}

}  // namespace osprey::cuda
