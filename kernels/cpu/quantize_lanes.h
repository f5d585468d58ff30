#pragma once
// The way of quantize() to blocks with small scales on CPUs with AVX-512, 16 rows at a time.

#include <array>
#include <atomic>

#include "kernels/quantize.h"

namespace osprey::cpu {

/// The stream of a rotation or a rounding in its step.
template <class Draws>
uint64_t stream_at(const Draws& d) {
  return d.stream + (d.step.defined() ? static_cast<uint64_t>(*d.step.template as<double>()) : 0);
}

/// Of a rotation, as bits to flip in floats.
struct Signs {
  explicit Signs(const kernels::Rotation& r) {
    const Philox p = rotation_signs(r.seed, stream_at(r));
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = (p.v[i / 32] >> i % 32) << 31;
  }
  std::array<uint32_t, 128> bits;
};

/// largest = max(largest, value), from any thread.
inline void raise(uint32_t& largest, uint32_t value) {
  std::atomic_ref<uint32_t> shared(largest);
  uint32_t seen = shared.load(std::memory_order_relaxed);
  while (seen < value && !shared.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

/// As many of the first rows as this way can do: a multiple of 16, or 0 where the arguments or the CPU have
/// it not. The functions below are for those rows; the bits are those of every other way.
int64_t rows_in_lanes(const kernels::Quantize& args);
/// Magnitude bits of the largest finite number that will be rounded.
uint32_t largest_in_lanes(const Queue& queue, const kernels::Quantize& args);
/// `tensor` is for formats with e4m3 scales.
void quantize_in_lanes(const Queue& queue, const kernels::Quantize& args, TensorScale tensor);

}  // namespace osprey::cpu
