#pragma once
// The way of quantize() to mxfp4 on CPUs with AVX-512, 16 rows at a time.

#include <array>

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

/// Quantizes as many of the first rows as this way can do and returns their number: a multiple of 16, or 0
/// where the arguments or the CPU have it not. The bits are those of every other way.
int64_t quantize_lanes(const Queue& queue, const kernels::Quantize& args);

}  // namespace osprey::cpu
