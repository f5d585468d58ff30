#pragma once
// A packed matrix as kernels of products read it.

#include "kernels/block_format.h"
#include "kernels/cuda/ptx.h"

namespace osprey::cuda {

/// Arguments have eight bytes a member; enumerations travel as int64_t.
struct PackedMatrix {
  const uint8_t* codes;
  const void* scales;
  const float* tensor_scale;  // null where there is none
  int64_t code_stride, scale_stride, element, scale;

  __device__ Element kind() const { return static_cast<Element>(element); }
  __device__ uint32_t code(int64_t row, int64_t col) const {
    const int bits = element_bits(kind());
    const int64_t bit = col * bits;
    const uint8_t* at = codes + row * code_stride + bit / 8;
    const auto shift = static_cast<int>(bit % 8);
    const uint32_t next = shift + bits > 8 ? at[1] : 0u;
    return (at[0] | next << 8) >> shift & ((1u << bits) - 1);
  }
  __device__ float scale_at(int64_t row, int64_t i) const {
    const int64_t at = row * scale_stride + i;
    const auto type = static_cast<ScaleType>(scale);
    return type == ScaleType::f32 ? static_cast<const float*>(scales)[at]
                                  : decode_scale(type, static_cast<const uint8_t*>(scales)[at]);
  }
  __device__ float whole() const { return tensor_scale ? *tensor_scale : 1.0f; }
};

inline PackedMatrix packed_matrix(const Packed& p) {
  return {.codes = p.codes.as<uint8_t>(),
          .scales = p.scales.data,
          .tensor_scale = p.tensor_scale.defined() ? p.tensor_scale.as<float>() : nullptr,
          .code_stride = p.codes.row_stride(),
          .scale_stride = p.format.granularity == Granularity::tensor ? 0 : p.scales.row_stride(),
          .element = static_cast<int64_t>(p.format.element),
          .scale = static_cast<int64_t>(p.format.scale)};
}

}  // namespace osprey::cuda
