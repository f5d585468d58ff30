#include "kernels/cpu/quantize_lanes.h"

#include "kernels/cpu/isa/mxfp4_lanes.h"

namespace osprey::cpu {

namespace {

using kernels::Quantize;
using Source = Mxfp4Lanes::Source;

bool fits(const Quantize& a) {
  if (!mxfp4_lanes_table().quantize || !(a.y.format == BlockFormat{})) return false;
  return a.x.defined() || (a.transpose && a.packed_x.format == BlockFormat{});
}

Source source_of(const Quantize& a) {
  if (!a.x.defined()) return Source::columns_mxfp4;
  const bool half = a.x.dtype == DType::bf16;
  if (a.transpose) return half ? Source::columns_bf16 : Source::columns_f32;
  return half ? Source::rows_bf16 : Source::rows_f32;
}

const uint8_t* byte_of(const Tensor& t, int64_t row, int64_t byte) {
  return static_cast<const uint8_t*>(t.data) + row * t.row_stride() * size_bytes(t.dtype) + byte;
}
uint8_t* byte_to(const Tensor& t, int64_t row, int64_t byte) {
  return static_cast<uint8_t*>(t.data) + row * t.row_stride() + byte;
}

}  // namespace

int64_t quantize_lanes(const Queue& queue, const Quantize& a) {
  const int64_t rows = a.y.rows / mxfp4_lanes * mxfp4_lanes, cols = a.y.cols;
  if (rows == 0 || !fits(a)) return 0;
  const Source source = source_of(a);
  const Signs signs(a.rotation);
  Mxfp4Lanes whole{};
  whole.source = source;
  whole.size = a.rotation.size;
  whole.signs = signs.bits.data();
  whole.factor = kernels::rotation_factor(a.rotation, a.prescale);
  whole.rule = a.rule;
  whole.stochastic = a.rounding.kind == kernels::Rounding::Kind::stochastic;
  whole.seed = a.rounding.seed;
  whole.stream = stream_at(a.rounding);
  whole.draw_stride = static_cast<uint64_t>(cols);
  whole.code_stride = a.y.codes.row_stride();
  whole.scale_stride = a.y.scales.row_stride();
  if (a.mask.defined()) whole.mask_stride = a.mask.row_stride();
  const Tensor& x = a.x.defined() ? a.x : a.packed_x.codes;
  whole.x_stride = x.row_stride() * size_bytes(x.dtype);
  if (!a.x.defined()) whole.x_scale_stride = a.packed_x.scales.row_stride();

  const int64_t high = mxfp4_lanes * mxfp4_lanes_groups(source, whole.size), down = (rows + high - 1) / high,
                across = (cols + mxfp4_lanes_cols - 1) / mxfp4_lanes_cols;
  // Neighbours come one after the other as they lie in x.
  parallel_for(queue, down * across, a.transpose ? 4 : 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = (a.transpose ? i % down : i / across) * high,
                    col = (a.transpose ? i / down : i % across) * mxfp4_lanes_cols;
      Mxfp4Lanes t = whole;
      t.groups = std::min(high, rows - row) / mxfp4_lanes;
      t.cols = std::min(mxfp4_lanes_cols, cols - col);
      if (source == Source::columns_mxfp4) {
        t.x = byte_of(x, col, row / 2);
        t.x_scales = byte_of(a.packed_x.scales, col, row / 32);
        t.x_half = row / 16 % 2;
      } else {
        const int64_t size = size_bytes(x.dtype);
        t.x = a.transpose ? byte_of(x, col, row * size) : byte_of(x, row, col * size);
      }
      t.first_draw = static_cast<uint64_t>(row * cols + col);
      t.codes = byte_to(a.y.codes, row, col / 2);
      t.scales = byte_to(a.y.scales, row, col / 32);
      if (a.mask.defined()) t.mask = byte_to(a.mask, row, col / 8);
      mxfp4_lanes_table().quantize(t);
    }
  });
  return rows;
}

}  // namespace osprey::cpu
