#pragma once
// How kernels for packed matrices walk and rotate their numbers: a warp works on a span of 128 elements of a
// row, four in a lane; no block and no rotation is longer.

#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/quantize.h"

namespace osprey::cuda {

inline constexpr int warps = 8, threads = warps * warp_size, per_lane = 4, span = per_lane * warp_size;

// Arguments have eight bytes a member; enumerations travel as int64_t and floats as double.

template <class T>
struct Dense {
  const T* data;
  int64_t stride;
  __device__ float at(int64_t row, int64_t col) const { return to_float(data[row * stride + col]); }
  __device__ Four four(int64_t row, int64_t col, int64_t left) const {
    return load_four(data + row * stride + col, left);
  }
};
template <class T>
Dense<T> dense(const Tensor& t) {
  return {t.as<T>(), t.row_stride()};
}

/// A packed matrix.
struct Blocks {
  uint8_t* codes;
  int64_t codes_stride;
  void* scales;
  int64_t scales_stride;
  float* tensor_scale;  // null where there is none
  int64_t element, scale, block, rows, cols;
  int64_t by_block, by_row;  // whether scales differ from block to block, and from row to row

  __device__ ElementLayout layout() const { return element_layout(static_cast<Element>(element)); }
  __device__ ScaleType scale_type() const { return static_cast<ScaleType>(scale); }
  __device__ float whole() const { return tensor_scale ? *tensor_scale : 1.0f; }
  __device__ int64_t scale_place(int64_t row, int64_t col) const {
    return (by_row ? row * scales_stride : 0) + (by_block ? col / block : 0);
  }
  __device__ uint32_t stored_scale(int64_t place) const {
    return scale_type() == ScaleType::f32 ? float_bits(static_cast<const float*>(scales)[place])
                                          : static_cast<const uint8_t*>(scales)[place];
  }
  __device__ void store_scale(int64_t place, uint32_t stored) const {
    if (scale_type() == ScaleType::f32)
      static_cast<float*>(scales)[place] = bits_float(stored);
    else
      static_cast<uint8_t*>(scales)[place] = static_cast<uint8_t>(stored);
  }
  __device__ float at(int64_t row, int64_t col) const {
    const ElementLayout l = layout();
    const int64_t bit = col * l.bits;
    const uint8_t* p = codes + row * codes_stride + bit / 8;
    const int shift = static_cast<int>(bit % 8);
    uint32_t code = static_cast<uint32_t>(*p) >> shift;
    if (shift + l.bits > 8) code |= static_cast<uint32_t>(p[1]) << (8 - shift);
    return scaled(decode_element(l, code & ((1u << l.bits) - 1)),
                  decode_scale(scale_type(), stored_scale(scale_place(row, col))), whole());
  }
  __device__ Four four(int64_t row, int64_t col, int64_t left) const {
    Four f{};
#pragma unroll
    for (int i = 0; i < per_lane; ++i)
      if (i < left) f.v[i] = at(row, col + i);
    return f;
  }
};
inline Blocks blocks(const Packed& p) {
  return {.codes = p.codes.as<uint8_t>(),
          .codes_stride = p.codes.row_stride(),
          .scales = p.scales.data,
          .scales_stride = p.scales.row_stride(),
          .tensor_scale = p.format.scale == ScaleType::e4m3 ? p.tensor_scale.as<float>() : nullptr,
          .element = static_cast<int64_t>(p.format.element),
          .scale = static_cast<int64_t>(p.format.scale),
          .block = p.format.block,
          .rows = p.rows,
          .cols = p.cols,
          .by_block = p.format.granularity == Granularity::block,
          .by_row = p.format.granularity != Granularity::tensor};
}

/// What happens to numbers between memory and rounding.
struct Turn {
  int64_t size;                    // of the rotation, or 0
  uint64_t low_signs, high_signs;  // bit i: element i, or 64 + i, of a group changes its sign
  const uint64_t* drawn_signs;     // both, where the step decides and the device alone knows it; or null
  double factor;                   // an fp32 number
  int64_t transposed;              // signs go last

  __device__ void flip(float (&v)[per_lane], int64_t col) const {
    const uint64_t low = drawn_signs ? drawn_signs[0] : low_signs;
    const uint64_t high = drawn_signs ? drawn_signs[1] : high_signs;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      const auto at = static_cast<unsigned>((col + i) & (size - 1));
      v[i] =
          bits_float(float_bits(v[i]) ^ static_cast<uint32_t>((at < 64 ? low : high) >> at % 64 & 1) << 31);
    }
  }
  /// All lanes of a warp call it.
  __device__ void operator()(float (&v)[per_lane], int64_t col) const {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    if (size > 0) {
      if (!transposed) flip(v, col);
        // Sums of neighbours first: an order that kernels/cpu/isa/hadamard.h shares.
#pragma unroll
      for (int h = 1; h < per_lane; h *= 2)
#pragma unroll
        for (int i = 0; i < per_lane; ++i)
          if ((i & h) == 0) {
            const float a = v[i], b = v[i + h];
            v[i] = a + b;
            v[i + h] = a - b;
          }
      for (int h = 1; h * per_lane < size; h *= 2)
#pragma unroll
        for (int i = 0; i < per_lane; ++i) {
          const float other = __shfl_xor_sync(full_warp, v[i], h);
          v[i] = lane & h ? other - v[i] : v[i] + other;
        }
    }
    const float f = static_cast<float>(factor);
#pragma unroll
    for (int i = 0; i < per_lane; ++i) v[i] *= f;
    if (size > 0 && transposed) flip(v, col);
  }
};

/// Of scratch memory, for signs that depend on a step.
inline constexpr int64_t sign_bytes = 256;

/// A stream of draws in its step.
__host__ __device__ inline uint64_t stream_at(uint64_t stream, const double* step) {
  return stream + (step ? static_cast<uint64_t>(*step) : 0);
}
__host__ __device__ inline uint64_t low_signs_of(const Philox& p) {
  return p.v[0] | static_cast<uint64_t>(p.v[1]) << 32;
}
__host__ __device__ inline uint64_t high_signs_of(const Philox& p) {
  return p.v[2] | static_cast<uint64_t>(p.v[3]) << 32;
}

static __global__ void draw_signs(uint64_t* signs, uint64_t seed, uint64_t stream, const double* step) {
  const Philox p = rotation_signs(seed, stream_at(stream, step));
  signs[0] = low_signs_of(p);
  signs[1] = high_signs_of(p);
}

inline const double* step_of(const Tensor& step) { return step.defined() ? step.as<double>() : nullptr; }

/// `drawn_signs`: two words of device memory for signs that depend on a step, or null where there is none.
inline Turn turn(const Queue& queue, const kernels::Rotation& r, float prescale, int64_t transposed,
                 uint64_t* drawn_signs) {
  const bool drawn = r.size > 0 && r.step.defined();
  if (drawn)
    launch("draw_signs", queue, {.blocks = 1, .threads = 1}, draw_signs, drawn_signs, r.seed, r.stream,
           step_of(r.step));
  const Philox p = rotation_signs(r.seed, r.stream);
  return {.size = r.size,
          .low_signs = low_signs_of(p),
          .high_signs = high_signs_of(p),
          .drawn_signs = drawn ? drawn_signs : nullptr,
          .factor = kernels::rotation_factor(r, prescale),
          .transposed = transposed};
}

}  // namespace osprey::cuda
