// Few rows of x times packed weights, which are read once, as they are stored.

#include "kernels/packed_linear.h"

#include <algorithm>

#include "kernels/cpu/isa/convert.h"
#include "kernels/cpu/isa/packed_dot.h"
#include "kernels/cpu/isa/packed_tiles.h"
#include "kernels/cpu/isa/quantize.h"
#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/scratch.h"

namespace osprey::cpu {

namespace {

constexpr int64_t few = kernels::packed_linear_few_rows;
static_assert(few == tile_rows);

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

// ---- tiles: weights become bf16 numbers, some rows and some k at a time, in the nearest caches

/// Of a row of weights that are decoded together.
constexpr int64_t tile_run = 512;
static_assert(tile_run <= quantize_run && tile_run % tile_depth == 0);

bool multiplies_tiles(const kernels::PackedLinear& a) {
  // Fewer rows of mxfp4 are done sooner one by one, as its codes are: docs/measurements.md.
  const int64_t least_rows = a.weights[0].format == BlockFormat{} ? 4 : 1;
  return a.x.dtype == DType::bf16 && a.x.rows() >= least_rows && packed_tiles_table().multiply &&
         has_bf16_tiles();
}

int64_t tile_steps(int64_t k) { return (k + tile_depth - 1) / tile_depth; }

/// x as blocks of [tile_depth / 2][tile_rows] pairs of k, with zeros where there are none, in the calling
/// thread's scratch memory.
const uint32_t* paired(const Tensor& x) {
  const int64_t rows = x.rows(), cols = x.cols(), pairs = tile_steps(cols) * tile_depth / 2;
  uint32_t* to = scratch_of<uint32_t>(Scratch::block_rows, static_cast<size_t>(pairs * tile_rows));
  const auto bits = [&](int64_t r, int64_t k) -> uint32_t {
    return r < rows && k < cols ? x.as<bf16>()[r * x.row_stride() + k].bits : 0u;
  };
  for (int64_t p = 0; p < pairs; ++p)
    for (int64_t r = 0; r < tile_rows; ++r) to[p * tile_rows + r] = bits(r, 2 * p) | bits(r, 2 * p + 1) << 16;
  return to;
}

/// The scales of `count` blocks of a row, from element k on, in `room` or where they are.
const float* scales_of(float* room, const Packed& w, int64_t row, int64_t k, int64_t count) {
  const BlockFormat& f = w.format;
  const int64_t at = (f.granularity == Granularity::tensor ? 0 : row * w.scales.row_stride()) +
                     (f.granularity == Granularity::block ? k / f.block : 0);
  if (f.scale == ScaleType::f32) return w.scales.as<float>() + at;
  const uint8_t* codes = w.scales.as<uint8_t>() + at;
  if (f.scale == ScaleType::e8m0)
    packed_dot_table().e8m0_scales(room, codes, count);
  else
    packed_tiles_table().e4m3_scales(room, codes, count);
  return room;
}

/// Elements [k, k + n) of a row as bf16, then zeros up to a multiple of tile_depth.
void numbers_of(bf16* to, const Packed& w, int64_t row, int64_t k, int64_t n) {
  if (w.format == BlockFormat{}) {
    const int64_t block = w.format.block;
    packed_tiles_table().mxfp4_numbers(to, w.codes.as<uint8_t>() + row * w.codes.row_stride() + k / 2,
                                       w.scales.as<uint8_t>() + row * w.scales.row_stride() + k / block,
                                       n / block);
    return;
  }
  const Element e = w.format.element;
  if (n % tile_depth == 0 && (e == Element::e2m1 || e == Element::int4 || e == Element::int8)) {
    float scales[tile_run / 16];
    const int64_t block = w.format.granularity == Granularity::block ? w.format.block : n;
    packed_tiles_table().numbers(to,
                                 w.codes.as<uint8_t>() + row * w.codes.row_stride() + k * w.format.bits() / 8,
                                 scales_of(scales, w, row, k, n / block), block,
                                 w.tensor_scale.defined() ? *w.tensor_scale.as<float>() : 1.0f, n, e);
    return;
  }
  alignas(64) float v[quantize_run + 16];
  decode_run(v, w, row, k, n);
  quantize_table().store_bf16(to, v, n, 0);
  std::fill(to + n, to + tile_steps(n) * tile_depth, bf16{0});
}

void by_tiles(const Queue& queue, const kernels::PackedLinear& a) {
  const uint32_t* x = paired(a.x);
  const int64_t k = a.x.cols(), rows = a.x.rows();
  constexpr int64_t apart =
      tile_run + 32;  // rows of a panel: a power of two would share few sets of the cache
  int64_t before = 0;
  for (const Packed& w : a.weights) {
    parallel_for(queue, (w.rows + tile_weights - 1) / tile_weights, 1, [&](int64_t begin, int64_t end) {
      bf16* panel = scratch_of<bf16>(Scratch::block_buffer, tile_weights * apart);
      alignas(64) float sums[tile_weights * tile_rows];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * tile_weights, count = std::min(tile_weights, w.rows - first);
        packed_tiles_table().begin();
        for (int64_t at = 0; at < k; at += tile_run) {
          const int64_t n = std::min(tile_run, k - at);
          for (int64_t r = 0; r < count; ++r) numbers_of(panel + r * apart, w, first + r, at, n);
          packed_tiles_table().multiply(panel, apart, x + at / 2 * tile_rows, tile_steps(n));
        }
        packed_tiles_table().end(sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < count; ++c) store(a.y, r, before + first + c, sums[c * tile_rows + r]);
      }
    });
    before += w.rows;
  }
}

// ---- one row of weights after the other

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
  if (multiplies_tiles(a)) return by_tiles(queue, a);
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
