#include "kernels/cpu/quantize_lanes.h"

#include "kernels/cpu/isa/quantize_lanes.h"

namespace osprey::cpu {

namespace {

using kernels::Quantize;
using Source = LanesTile::Source;

/// Blocks of 32 with powers of two, and of 16 with e4m3 scales; draws and masks go by 32 columns.
bool fits(const Quantize& a) {
  const BlockFormat &y = a.y.format, &x = a.packed_x.format;
  const bool powers = y.scale == ScaleType::e8m0 && y.block == 32,
             small = y.scale == ScaleType::e4m3 && y.block == 16 && y.bits() == 4;
  if (!lanes_table().quantize || y.granularity != Granularity::block || !(powers || small)) return false;
  if (a.y.cols % lanes_step != 0) return false;
  return a.x.defined() || (a.transpose && (x == BlockFormat{} || x == block_format("nvfp4")));
}

Source source_of(const Quantize& a) {
  if (!a.x.defined())
    return a.packed_x.format == BlockFormat{} ? Source::columns_mxfp4 : Source::columns_nvfp4;
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

/// Calls f(tile, row, column) for tiles of y that begin there, in which what is read and the size are set.
template <class F>
void each_tile(const Queue& queue, const Quantize& a, const F& f) {
  const int64_t rows = rows_in_lanes(a), cols = a.y.cols;
  const Source source = source_of(a);
  const Signs signs(a.rotation);
  const bool packed = !a.x.defined();
  const Tensor& x = packed ? a.packed_x.codes : a.x;
  LanesTile whole{};
  whole.source = source;
  whole.size = a.rotation.size;
  whole.signs = signs.bits.data();
  whole.factor = kernels::rotation_factor(a.rotation, a.prescale);
  whole.x_stride = x.row_stride() * size_bytes(x.dtype);
  if (packed) whole.x_scale_stride = a.packed_x.scales.row_stride();
  if (source == Source::columns_nvfp4) whole.x_tensor_scale = *a.packed_x.tensor_scale.as<float>();

  const int64_t high = lanes_rows * lanes_groups(source, whole.size), down = (rows + high - 1) / high,
                across = (cols + lanes_cols - 1) / lanes_cols;
  // Neighbours come one after the other as they lie in x.
  parallel_for(queue, down * across, a.transpose ? 4 : 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = (a.transpose ? i % down : i / across) * high,
                    col = (a.transpose ? i / down : i % across) * lanes_cols;
      LanesTile t = whole;
      t.groups = std::min(high, rows - row) / lanes_rows;
      t.cols = std::min(lanes_cols, cols - col);
      if (packed) {
        const int64_t block = a.packed_x.format.block;
        t.x = byte_of(x, col, row / 2);
        t.x_scales = byte_of(a.packed_x.scales, col, row / block);
      } else {
        const int64_t size = size_bytes(x.dtype);
        t.x = a.transpose ? byte_of(x, col, row * size) : byte_of(x, row, col * size);
      }
      f(t, row, col);
    }
  });
}

}  // namespace

int64_t rows_in_lanes(const Quantize& a) { return fits(a) ? a.y.rows / lanes_rows * lanes_rows : 0; }

uint32_t largest_in_lanes(const Queue& queue, const Quantize& a) {
  uint32_t largest = 0;
  each_tile(queue, a,
            [&](const LanesTile& t, int64_t, int64_t) { raise(largest, lanes_table().largest(t)); });
  return largest;
}

void quantize_in_lanes(const Queue& queue, const Quantize& a, TensorScale tensor) {
  const BlockFormat& f = a.y.format;
  const uint64_t stream = stream_at(a.rounding);
  each_tile(queue, a, [&](LanesTile& t, int64_t row, int64_t col) {
    t.element = f.element;
    t.scale = f.scale;
    t.rule = a.rule;
    t.tensor = tensor;
    t.stochastic = a.rounding.kind == kernels::Rounding::Kind::stochastic;
    t.seed = a.rounding.seed;
    t.stream = stream;
    t.first_draw = static_cast<uint64_t>(row * a.y.cols + col);
    t.draw_stride = static_cast<uint64_t>(a.y.cols);
    t.codes = byte_to(a.y.codes, row, col * f.bits() / 8);
    t.code_stride = a.y.codes.row_stride();
    t.scales = byte_to(a.y.scales, row, col / f.block);
    t.scale_stride = a.y.scales.row_stride();
    if (a.mask.defined()) {
      t.mask = byte_to(a.mask, row, col / 8);
      t.mask_stride = a.mask.row_stride();
    }
    lanes_table().quantize(t);
  });
}

}  // namespace osprey::cpu
