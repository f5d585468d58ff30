#include "kernels/freezing.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sums.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;
constexpr int64_t most_blocks = 1024;

// Eight bytes a member.
struct Hold {
  float *held, *grad;
  const float* master;
  const void* scales;
  const float* tensor_scale;  // null where there is none
  const double* step;
  double* partial;
  double begin, anneal, last;
  int64_t count, first, cols, element, scale, scales_stride, block;  // 0: one scale in a row

  __device__ float inverse_at(int64_t row, int64_t col) const {
    const int64_t place = row * scales_stride + (block ? col / block : 0);
    const auto type = static_cast<ScaleType>(scale);
    const uint32_t stored = type == ScaleType::f32 ? float_bits(static_cast<const float*>(scales)[place])
                                                   : static_cast<const uint8_t*>(scales)[place];
    return inverse_scale(type, stored, tensor_scale ? *tensor_scale : 1.0f);
  }
};

__global__ void __launch_bounds__(threads) hold(const Hold a) {
  SumShared& shared = block_shared<SumShared>();
  const float boundary = freeze_boundary({a.begin, a.anneal, a.last}, *a.step);
  const ElementLayout layout = element_layout(static_cast<Element>(a.element));
  double frozen = 0;
  for (int64_t i = blockIdx.x * int64_t{threads} + threadIdx.x; i < a.count;
       i += gridDim.x * int64_t{threads}) {
    const float v = a.master[i];
    const float inverse = a.inverse_at((a.first + i) / a.cols, (a.first + i) % a.cols);
    const bool stands = rounding_margin(layout, v * inverse) > boundary;
    a.held[i] = stands ? v : bits_float(float_nan);
    if (stands) a.grad[i] = 0;
    frozen += stands;
  }
  frozen = block_sum(frozen, shared.warps);
  if (threadIdx.x == 0) a.partial[blockIdx.x] = frozen;
}

template <class T>
__global__ void __launch_bounds__(threads)
    restore(T* value, float* master, const float* held, int64_t count) {
  const int64_t i = blockIdx.x * int64_t{threads} + threadIdx.x;
  if (i >= count || magnitude_bits(held[i]) > float_infinity) return;
  master[i] = held[i];
  if constexpr (sizeof(T) == 2)
    value[i] = to_bf16(held[i]);
  else
    value[i] = held[i];
}

}  // namespace

void hold_frozen(const Queue& queue, const kernels::HoldFrozen& a) {
  const BlockFormat& f = a.y.format;
  const int64_t count = a.master.numel(), blocks = std::min((count + threads - 1) / threads, most_blocks);
  auto* partial =
      static_cast<double*>(stream_of(queue).scratch(most_blocks * static_cast<int64_t>(sizeof(double))));
  launch("hold_frozen", queue,
         {.blocks = static_cast<unsigned>(blocks), .threads = threads, .shared_bytes = sizeof(SumShared)},
         hold,
         Hold{.held = a.held.as<float>(),
              .grad = a.grad.as<float>(),
              .master = a.master.as<float>(),
              .scales = a.y.scales.data,
              .tensor_scale = f.scale == ScaleType::e4m3 ? a.y.tensor_scale.as<float>() : nullptr,
              .step = a.step.as<double>(),
              .partial = partial,
              .begin = a.schedule.begin,
              .anneal = a.schedule.anneal,
              .last = a.schedule.last,
              .count = count,
              .first = a.first,
              .cols = a.y.cols,
              .element = static_cast<int64_t>(f.element),
              .scale = static_cast<int64_t>(f.scale),
              .scales_stride = f.granularity == Granularity::tensor ? 0 : a.y.scales.row_stride(),
              .block = f.granularity == Granularity::block ? f.block : 0});
  launch(
      "hold_frozen", queue, {.blocks = 1, .threads = sum_final_threads, .shared_bytes = sizeof(SumShared)},
      final_sum,
      FinalSum{.partial = partial, .count = blocks, .sum = a.frozen.as<double>(), .into = Into::overwrite});
}

void restore_frozen(const Queue& queue, const kernels::RestoreFrozen& a) {
  const int64_t count = a.master.numel();
  const Grid grid{.blocks = static_cast<unsigned>((count + threads - 1) / threads), .threads = threads};
  if (a.value.dtype == DType::bf16)
    launch("restore_frozen", queue, grid, restore<bf16>, a.value.as<bf16>(), a.master.as<float>(),
           a.held.as<float>(), count);
  else
    launch("restore_frozen", queue, grid, restore<float>, a.value.as<float>(), a.master.as<float>(),
           a.held.as<float>(), count);
}

}  // namespace osprey::cuda
