#include "kernels/freezing.h"

#include <atomic>
#include <cmath>

namespace osprey::cpu {

namespace {

/// What the element at (row, col) is multiplied by before it is rounded.
float inverse_at(const Packed& y, int64_t row, int64_t col) {
  const BlockFormat& f = y.format;
  const int64_t place = (f.granularity == Granularity::tensor ? 0 : row * y.scales.row_stride()) +
                        (f.granularity == Granularity::block ? col / f.block : 0);
  const uint32_t stored =
      f.scale == ScaleType::f32 ? float_bits(y.scales.as<float>()[place]) : y.scales.as<uint8_t>()[place];
  return inverse_scale(f.scale, stored, f.scale == ScaleType::e4m3 ? *y.tensor_scale.as<float>() : 1.0f);
}

}  // namespace

void hold_frozen(const Queue& queue, const kernels::HoldFrozen& a) {
  const float boundary = freeze_boundary(a.schedule, *a.step.as<double>());
  const ElementLayout layout = element_layout(a.y.format.element);
  const int64_t cols = a.y.cols,
                sharing = a.y.format.granularity == Granularity::block ? a.y.format.block : cols;
  float *held = a.held.as<float>(), *grad = a.grad.as<float>();
  const float* master = a.master.as<float>();
  std::atomic<int64_t> frozen{0};
  parallel_for(queue, a.master.numel(), 4096, [&](int64_t begin, int64_t end) {
    int64_t still = 0;
    for (int64_t i = begin; i < end;) {
      const int64_t row = (a.first + i) / cols, col = (a.first + i) % cols;
      const int64_t stop = std::min(end, i + sharing - col % sharing);
      const float inverse = inverse_at(a.y, row, col);
      for (; i < stop; ++i) {
        const bool stands = rounding_margin(layout, master[i] * inverse) > boundary;
        held[i] = stands ? master[i] : NAN;
        if (stands) grad[i] = 0;
        still += stands;
      }
    }
    frozen += still;
  });
  *a.frozen.as<double>() = static_cast<double>(frozen);
}

namespace {

float rounded(float v, const float*) { return v; }
bf16 rounded(float v, const bf16*) { return to_bf16(v); }

template <class T>
void restore(const Queue& queue, const kernels::RestoreFrozen& a) {
  T* value = a.value.as<T>();
  float* master = a.master.as<float>();
  const float* held = a.held.as<float>();
  parallel_for(queue, a.master.numel(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (std::isnan(held[i])) continue;
      master[i] = held[i];
      value[i] = rounded(held[i], value);
    }
  });
}

}  // namespace

void restore_frozen(const Queue& queue, const kernels::RestoreFrozen& a) {
  a.value.dtype == DType::bf16 ? restore<bf16>(queue, a) : restore<float>(queue, a);
}

}  // namespace osprey::cpu
