// Few rows of x times packed weights, which are read once, as they are stored.

#include "kernels/packed_linear.h"

#include <algorithm>

#include "kernels/cpu/isa/convert.h"
#include "kernels/cpu/isa/packed_dot.h"
#include "kernels/cpu/isa/quantize.h"
#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

constexpr int64_t few = kernels::packed_linear_few_rows;

void store(const Tensor& y, int64_t row, int64_t col, float v) {
  const int64_t at = row * y.row_stride() + col;
  if (y.dtype == DType::bf16)
    y.as<bf16>()[at] = to_bf16(v);
  else
    y.as<float>()[at] = v;
}

/// All of x as floats, in the calling thread's scratch memory.
const float* widened(const Tensor& x) {
  const int64_t rows = x.rows(), cols = x.cols();
  float* to = scratch_of<float>(Scratch::block_rows, static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    if (x.dtype == DType::bf16)
      convert_table().widen(to + r * cols, x.as<bf16>() + r * x.row_stride(), cols);
    else
      std::copy_n(x.as<float>() + r * x.row_stride(), cols, to + r * cols);
  }
  return to;
}

void by_numbers(float* sums, const Packed& w, int64_t row, const float* x, int64_t rows, bool halves) {
  alignas(64) float v[quantize_run];
  std::fill_n(sums, rows, 0.0f);
  for (int64_t k = 0; k < w.cols; k += quantize_run) {
    const int64_t n = std::min(quantize_run, w.cols - k);
    decode_run(v, w, row, k, n);
    if (halves) packed_dot_table().round_bf16(v, n);
    packed_dot_table().add_dots(sums, v, x + k, w.cols, rows, n);
  }
}

}  // namespace

void packed_linear(const Queue& queue, const kernels::PackedLinear& a) {
  const PackedDotTable& table = packed_dot_table();
  const int64_t rows = a.x.rows(), k = a.x.cols();
  const bool halves = a.x.dtype == DType::bf16,
             fast = halves && table.mxfp4_bf16 && a.weights[0].format == BlockFormat{};
  const float* x = fast ? nullptr : widened(a.x);
  int64_t before = 0;
  for (const Packed& w : a.weights) {
    parallel_for(queue, w.rows, 16, [&](int64_t begin, int64_t end) {
      float sums[few];
      float* scales =
          fast ? scratch_of<float>(Scratch::block_buffer, static_cast<size_t>(k / w.format.block)) : nullptr;
      for (int64_t row = begin; row < end; ++row) {
        if (fast) {
          table.e8m0_scales(scales, w.scales.as<uint8_t>() + row * w.scales.row_stride(), k / w.format.block);
          table.mxfp4_bf16(sums, w.codes.as<uint8_t>() + row * w.codes.row_stride(), scales, a.x.as<bf16>(),
                           a.x.row_stride(), rows, k);
        } else {
          by_numbers(sums, w, row, x, rows, halves);
        }
        for (int64_t r = 0; r < rows; ++r) store(a.y, r, before + row, sums[r]);
      }
    });
    before += w.rows;
  }
}

}  // namespace osprey::cpu
