#include "kernels/quantize.h"

#include <array>
#include <atomic>
#include <cmath>

#include "kernels/cpu/isa/quantize.h"
#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/quantize_lanes.h"
#include "kernels/cpu/scratch.h"
#include "kernels/numerics/step_size.h"

namespace osprey::cpu {

namespace {

/// A piece of y that one thread works on in the nearest caches: part of a row, or, where x is read by
/// columns, of 32 rows, so that what is read of a row of x is a cache line, and what is written of a row of y
/// is several.
struct Patch {
  int64_t row, col, rows, cols;
};
class Patches {
 public:
  static constexpr int64_t tile_rows = 32, tile_cols = 512;
  static constexpr int64_t apart = 16;  // rows of a tile: a power of two would share few sets of the cache
  static constexpr int64_t floats = tile_rows * (tile_cols + apart);  // encoders read up to a multiple of 16
  static_assert(floats >= quantize_run + 16);

  /// Of rows from `first` on.
  Patches(int64_t rows, int64_t cols, bool transpose, int64_t first = 0)
      : first_(first),
        rows_(rows),
        cols_(cols),
        high_(transpose ? tile_rows : 1),
        wide_(transpose ? tile_cols : quantize_run),
        down_((rows - first + high_ - 1) / high_),
        across_((cols + wide_ - 1) / wide_) {}
  int64_t count() const { return down_ * across_; }
  /// So many are worth a thread.
  int64_t grain() const { return high_ > 1 ? 1 : 16; }
  /// From one row of a patch to the next.
  int64_t stride() const { return wide_ + apart; }
  /// Neighbours come one after the other as they lie in x.
  Patch operator[](int64_t i) const {
    const int64_t row = first_ + (high_ > 1 ? i % down_ : i / across_) * high_,
                  col = (high_ > 1 ? i / down_ : i % across_) * wide_;
    return {row, col, std::min(high_, rows_ - row), std::min(wide_, cols_ - col)};
  }

 private:
  int64_t first_, rows_, cols_, high_, wide_, down_, across_;
};

template <class T>
T* at(const Tensor& t, int64_t row, int64_t col) {
  return t.as<T>() + row * t.row_stride() + col;
}

uint8_t* codes_at(const Packed& p, int64_t row, int64_t col) {
  return at<uint8_t>(p.codes, row, col * p.format.bits() / 8);
}

/// Where the scale of an element is.
struct ScaleAt {
  int64_t row, col;
};
ScaleAt scale_at(const BlockFormat& f, int64_t row, int64_t col) {
  return {f.granularity == Granularity::tensor ? 0 : row,
          f.granularity == Granularity::block ? col / f.block : 0};
}
uint32_t stored_scale(const Packed& p, ScaleAt s) {
  if (p.format.scale != ScaleType::f32) return *at<uint8_t>(p.scales, s.row, s.col);
  return float_bits(*at<float>(p.scales, s.row, s.col));
}
float tensor_scale(const Packed& p) {
  return p.format.scale == ScaleType::e4m3 ? *p.tensor_scale.as<float>() : 1.0f;
}

/// The end of the elements that share a scale with element `col` of a row.
int64_t block_end(const BlockFormat& f, int64_t col, int64_t end) {
  return f.granularity == Granularity::block ? std::min(end, (col / f.block + 1) * f.block) : end;
}

}  // namespace

void decode_run(float* v, const Packed& p, int64_t row, int64_t col, int64_t n) {
  quantize_table().decode[static_cast<size_t>(p.format.element)](v, codes_at(p, row, col), n);
  const float whole = tensor_scale(p);
  for (int64_t c = col; c < col + n;) {
    const int64_t end = block_end(p.format, c, col + n);
    // As scaled(): element times scale is exact, and then the whole matrix's.
    quantize_table().multiply(v + c - col, end - c,
                              decode_scale(p.format.scale, stored_scale(p, scale_at(p.format, row, c))));
    if (whole != 1) quantize_table().multiply(v + c - col, end - c, whole);
    c = end;
  }
}

namespace {

void load_run(float* v, const Tensor& x, int64_t row, int64_t col, int64_t n) {
  if (x.dtype == DType::bf16)
    quantize_table().load_bf16(v, at<bf16>(x, row, col), n);
  else
    quantize_table().load_f32(v, at<float>(x, row, col), n);
}

void store_run(const Tensor& y, int64_t row, int64_t col, const float* v, int64_t n, bool add) {
  if (y.dtype == DType::bf16)
    quantize_table().store_bf16(at<bf16>(y, row, col), v, n, add);
  else
    quantize_table().store_f32(at<float>(y, row, col), v, n, add);
}

/// What quantize() rounds: rotated and prescaled. `a` outlives it.
class Numbers {
 public:
  explicit Numbers(const kernels::Quantize& a)
      : a_(a), signs_(a.rotation), factor_(kernels::rotation_factor(a.rotation, a.prescale)) {}

  /// Rows of the patch `stride` apart.
  void read(float* v, int64_t stride, const Patch& p) const {
    if (a_.transpose)
      read_columns(v, stride, p);
    else if (a_.x.defined())
      load_run(v, a_.x, p.row, p.col, p.cols);
    else
      decode_run(v, a_.packed_x, p.row, p.col, p.cols);
    for (int64_t r = 0; r < p.rows; ++r) {
      if (a_.rotation)
        quantize_table().rotate({.v = v + r * stride,
                                 .n = p.cols,
                                 .size = a_.rotation.size,
                                 .signs = signs_.bits.data(),
                                 .factor = factor_,
                                 .transposed = false});
      else if (factor_ != 1)
        quantize_table().multiply(v + r * stride, p.cols, factor_);
    }
  }

 private:
  void read_columns(float* v, int64_t stride, const Patch& p) const {
    const QuantizeTable& table = quantize_table();
    if (a_.packed_x.defined()) {
      alignas(64) float x[Patches::tile_cols * Patches::tile_rows];
      for (int64_t r = 0; r < p.cols; ++r)
        decode_run(x + r * Patches::tile_rows, a_.packed_x, p.col + r, p.row, p.rows);
      table.load_columns_f32(v, stride, x, Patches::tile_rows, p.cols, p.rows);
    } else if (a_.x.dtype == DType::bf16) {
      table.load_columns_bf16(v, stride, at<bf16>(a_.x, p.col, p.row), a_.x.row_stride(), p.cols, p.rows);
    } else {
      table.load_columns_f32(v, stride, at<float>(a_.x, p.col, p.row), a_.x.row_stride(), p.cols, p.rows);
    }
  }

  const kernels::Quantize& a_;
  const Signs signs_;
  const float factor_;
};

/// A pass before the one that rounds: magnitude bits of the largest number of every row, or of all, where one
/// scale covers so much; with e4m3 scales the largest that is finite.
void find_largest(const Queue& queue, const Numbers& numbers, const Patches& patches, const BlockFormat& f,
                  uint32_t* largest) {
  parallel_for(queue, patches.count(), patches.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) float v[Patches::floats] = {};
    for (int64_t i = begin; i < end; ++i) {
      const Patch p = patches[i];
      numbers.read(v, patches.stride(), p);
      for (int64_t r = 0; r < p.rows; ++r) {
        float* row = v + r * patches.stride();
        if (f.scale == ScaleType::e4m3)
          for (int64_t c = 0; c < p.cols; ++c) row[c] = magnitude_bits(row[c]) < float_infinity ? row[c] : 0;
        uint32_t most[16];
        quantize_table().largest(most, row, p.cols, p.cols);
        raise(largest[f.granularity == Granularity::row ? p.row + r : 0], most[0]);
      }
    }
  });
}

/// Where numbers are those of x, as one run after the other.
bool is_x_itself(const kernels::Quantize& a) {
  return a.x.defined() && a.x.dtype == DType::bf16 && !a.rotation && a.prescale == 1;
}
uint32_t largest_finite(const Queue& queue, const Tensor& x) {
  uint32_t largest = 0;
  parallel_for(queue, x.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      raise(largest, quantize_table().largest_finite_bf16(at<bf16>(x, r, 0), x.cols()));
  });
  return largest;
}

/// A pass after find_largest() for rule stats: sums of magnitudes of every row, or of all, in units of the
/// largest's.
void find_magnitudes(const Queue& queue, const Numbers& numbers, const Patches& patches, const BlockFormat& f,
                     const uint32_t* largest, int64_t* sums) {
  parallel_for(queue, patches.count(), patches.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) float v[Patches::floats] = {};
    for (int64_t i = begin; i < end; ++i) {
      const Patch p = patches[i];
      numbers.read(v, patches.stride(), p);
      for (int64_t r = 0; r < p.rows; ++r) {
        const int64_t at = f.granularity == Granularity::row ? p.row + r : 0;
        if (largest[at] >= float_infinity) continue;
        std::atomic_ref<int64_t>(sums[at]).fetch_add(
            quantize_table().magnitudes(v + r * patches.stride(), p.cols, unit_exponent(largest[at])),
            std::memory_order_relaxed);
      }
    }
  });
}

/// The learnt step of a row, or of all.
float step_at(const Tensor& step, int64_t row) {
  return step.dtype == DType::bf16 ? to_float(step.as<bf16>()[row]) : step.as<float>()[row];
}

/// Of a row, or of all, from what the passes before this one found.
BlockScale shared_scale(const kernels::Quantize& a, int64_t row, uint32_t largest, int64_t magnitudes) {
  const Element e = a.y.format.element;
  const int64_t sharing = a.y.format.granularity == Granularity::row ? a.y.cols : a.y.rows * a.y.cols;
  switch (a.rule) {
    case ScaleRule::stats:
      return block_scale_stats(e, largest, sharing, magnitudes);
    case ScaleRule::lsq:
      return block_scale_lsq(e, largest, step_at(a.step, row));
    default:
      return block_scale_f32(e, largest);
  }
}

/// Of the block of a run.
BlockScale f32_scale(ScaleRule rule, Element e, uint32_t largest, const float* v, int64_t n) {
  if (rule != ScaleRule::stats || largest >= float_infinity) return block_scale_f32(e, largest);
  return block_scale_stats(e, largest, n, quantize_table().magnitudes(v, n, unit_exponent(largest)));
}

BlockScale e4m3_scale(ScaleRule rule, Element e, uint32_t largest, const TensorScale& tensor, const float* v,
                      int64_t n) {
  if (rule == ScaleRule::rceil) return block_scale_e4m3_up(e, largest, tensor);
  const BlockScale six = block_scale_e4m3(e, largest, tensor, 1.0f);
  if (rule != ScaleRule::four_over_six || largest >= float_infinity) return six;
  const BlockScale four = block_scale_e4m3(e, largest, tensor, 1.5f);
  const int64_t gain =
      quantize_table().error_difference(v, n, six, four, tensor.down, unit_exponent(largest));
  return gain > 0 ? four : six;
}

/// Scales of the blocks of a run of a row: stored at `scales`, and what elements are multiplied by.
void scale_blocks(float* inverse, void* scales, const float* v, int64_t n, const kernels::Quantize& a,
                  const TensorScale& tensor) {
  const BlockFormat& f = a.y.format;
  const int64_t count = n / f.block;
  uint32_t largest[quantize_run / 16];
  quantize_table().largest(largest, v, n, f.block);
  auto* small = static_cast<uint8_t*>(scales);
  if (f.scale == ScaleType::e8m0 && a.rule == ScaleRule::mse)
    return quantize_table().deviation_scales(small, inverse, largest, v, count, f.block);
  if (f.scale == ScaleType::e8m0)
    return quantize_table().power_scales[static_cast<size_t>(f.element)](small, inverse, largest, count,
                                                                         a.rule);
  for (int64_t b = 0; b < count; ++b) {
    const float* block = v + b * f.block;
    const BlockScale s = f.scale == ScaleType::e4m3
                             ? e4m3_scale(a.rule, f.element, largest[b], tensor, block, f.block)
                             : f32_scale(a.rule, f.element, largest[b], block, f.block);
    inverse[b] = s.inverse;
    if (f.scale == ScaleType::f32)
      static_cast<float*>(scales)[b] = bits_float(s.stored);
    else
      small[b] = static_cast<uint8_t>(s.stored);
  }
}

/// The plain way from bf16 to mxfp4.
bool is_plain_mxfp4(const kernels::Quantize& a) {
  return a.y.format == BlockFormat{} && a.x.defined() && a.x.dtype == DType::bf16 && !a.transpose &&
         a.rule != ScaleRule::mse && a.rounding.kind == kernels::Rounding::Kind::nearest_even &&
         !a.rotation && a.prescale == 1 && !a.mask.defined();
}
void plain_mxfp4(const Queue& queue, const kernels::Quantize& a) {
  const Patches patches(a.y.rows, a.y.cols, false);
  parallel_for(queue, patches.count(), patches.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Patch p = patches[i];
      quantize_table().mxfp4_of_bf16(codes_at(a.y, p.row, p.col),
                                     at<uint8_t>(a.y.scales, p.row, p.col / a.y.format.block),
                                     at<bf16>(a.x, p.row, p.col), p.cols, a.rule);
    }
  });
}

}  // namespace

void quantize(const Queue& queue, const kernels::Quantize& a) {
  if (is_plain_mxfp4(a)) return plain_mxfp4(queue, a);
  const int64_t in_lanes = rows_in_lanes(a);
  const BlockFormat& f = a.y.format;
  const Element e = f.element;
  const Numbers numbers(a);
  const Patches patches(a.y.rows, a.y.cols, a.transpose, in_lanes);
  const bool blocks = f.granularity == Granularity::block;

  uint32_t* largest = nullptr;  // of rows or of all, where that has to be known
  int64_t* sums = nullptr;      // of magnitudes, likewise
  const size_t count = f.granularity == Granularity::row ? static_cast<size_t>(a.y.rows) : 1;
  if (!blocks || f.scale == ScaleType::e4m3) {
    sums = scratch_of<int64_t>(Scratch::quantize, 2 * count);
    largest = reinterpret_cast<uint32_t*>(sums + count);
    std::fill_n(sums, 2 * count, int64_t{0});
    if (f.scale == ScaleType::e4m3 && is_x_itself(a)) {
      *largest = largest_finite(queue, a.x);
    } else {
      if (in_lanes > 0) *largest = largest_in_lanes(queue, a);
      find_largest(queue, numbers, patches, f, largest);
    }
    if (a.rule == ScaleRule::stats) find_magnitudes(queue, numbers, patches, f, largest, sums);
  }
  TensorScale tensor{1, 1};
  if (f.scale == ScaleType::e4m3) {
    tensor = tensor_scale_of(e, a.rule, *largest);
    *a.y.tensor_scale.as<float>() = tensor.down;
  }
  if (in_lanes > 0) quantize_in_lanes(queue, a, tensor);

  parallel_for(queue, patches.count(), patches.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) float v[Patches::floats] = {};
    float inverse[quantize_run / 16];
    for (int64_t i = begin; i < end; ++i) {
      const Patch p = patches[i];
      numbers.read(v, patches.stride(), p);
      for (int64_t r = 0; r < p.rows; ++r) {
        const float* row = v + r * patches.stride();
        const int64_t y_row = p.row + r;
        const ScaleAt place = scale_at(f, y_row, p.col);
        if (blocks) {
          void* scales = f.scale == ScaleType::f32
                             ? static_cast<void*>(at<float>(a.y.scales, place.row, place.col))
                             : at<uint8_t>(a.y.scales, place.row, place.col);
          scale_blocks(inverse, scales, row, p.cols, a, tensor);
        } else {
          const BlockScale scale = shared_scale(a, place.row, largest[place.row], sums[place.row]);
          if (p.col == 0 && place.row == y_row)
            *at<float>(a.y.scales, place.row, 0) = bits_float(scale.stored);
          inverse[0] = scale.inverse;
        }
        quantize_table().encode[static_cast<size_t>(e)](
            {.v = row,
             .n = p.cols,
             .block = blocks ? f.block : p.cols,
             .inverse = inverse,
             .limit = clip_limit(e, f.scale, a.rule),
             .codes = codes_at(a.y, y_row, p.col),
             .mask = a.mask.defined() ? at<uint8_t>(a.mask, y_row, p.col / 8) : nullptr,
             .stochastic = a.rounding.kind == kernels::Rounding::Kind::stochastic,
             .seed = a.rounding.seed,
             .stream = stream_at(a.rounding),
             .first_draw = static_cast<uint64_t>(y_row * a.y.cols + p.col)});
      }
    }
  });
}

void dequantize(const Queue& queue, const kernels::Dequantize& a) {
  const Patches patches(a.y.rows(), a.y.cols(), a.transpose);
  const kernels::Quantize source{.packed_x = a.x, .transpose = a.transpose, .prescale = a.factor};
  const Numbers numbers(source);
  parallel_for(queue, patches.count(), patches.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) float v[Patches::floats];
    for (int64_t i = begin; i < end; ++i) {
      const Patch p = patches[i];
      numbers.read(v, patches.stride(), p);
      for (int64_t r = 0; r < p.rows; ++r)
        store_run(a.y, p.row + r, p.col, v + r * patches.stride(), p.cols, false);
    }
  });
}

void unrotate(const Queue& queue, const kernels::Unrotate& a) {
  const Patches patches(a.x.rows(), a.x.cols(), false);
  const Signs signs(a.rotation);
  parallel_for(queue, patches.count(), patches.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) float v[Patches::floats];
    for (int64_t i = begin; i < end; ++i) {
      const Patch p = patches[i];
      load_run(v, a.x, p.row, p.col, p.cols);
      if (a.mask.defined()) quantize_table().keep(v, at<uint8_t>(a.mask, p.row, p.col / 8), p.cols);
      if (a.rotation)
        quantize_table().rotate({.v = v,
                                 .n = p.cols,
                                 .size = a.rotation.size,
                                 .signs = signs.bits.data(),
                                 .factor = kernels::rotation_factor(a.rotation, 1),
                                 .transposed = true});
      store_run(a.y.tensor, p.row, p.col, v, p.cols, a.y.add);
    }
  });
}

namespace {

using Sums = std::array<double, kernels::quantization_sums>;

/// Counts a row whose scales span more than 2^3, and more than 2^14.
void count_span(Sums& sums, const Packed& y, int64_t row) {
  float least = INFINITY, most = 0;
  for (int64_t b = 0; b < y.format.scales_per_row(y.cols); ++b) {
    const uint32_t stored = stored_scale(y, {scale_at(y.format, row, 0).row, b});
    const float scale = decode_scale(y.format.scale, stored);
    if (stored == 0 || !(scale < INFINITY)) continue;
    least = std::min(least, scale);
    most = std::max(most, scale);
  }
  const double span = most > 0 ? static_cast<double>(most) / static_cast<double>(least) : 1;
  sums[6] += span > 8;
  sums[7] += span > 16384;
}

void measure_row(Sums& sums, const kernels::MeasureQuantization& a, const Numbers& numbers, int64_t row) {
  alignas(64) float v[Patches::floats], q[quantize_run];
  const float limit = clip_limit(a.y.format.element, a.y.format.scale, a.rule), whole = tensor_scale(a.y);
  for (int64_t col = 0; col < a.y.cols; col += quantize_run) {
    const int64_t n = std::min(quantize_run, a.y.cols - col);
    numbers.read(v, quantize_run, {row, col, 1, n});
    decode_run(q, a.y, row, col, n);
    for (int64_t c = col; c < col + n;) {
      const int64_t end = block_end(a.y.format, c, col + n);
      const float inverse =
          inverse_scale(a.y.format.scale, stored_scale(a.y, scale_at(a.y.format, row, c)), whole);
      for (; c < end; ++c) {
        const float x = v[c - col], off = q[c - col] - x;
        sums[0] += static_cast<double>(x) * static_cast<double>(x);
        sums[1] += static_cast<double>(off) * static_cast<double>(off);
        sums[3] += std::fabs(x * inverse) > limit;
        sums[4] += x != 0 && q[c - col] == 0;
      }
    }
  }
  sums[2] += static_cast<double>(a.y.cols);
  sums[5] += 1;
  count_span(sums, a.y, row);
}

}  // namespace

void measure_quantization(const Queue& queue, const kernels::MeasureQuantization& a) {
  // At most 256 chunks whose bounds follow from the shape alone; their sums are added in order.
  const int64_t rows = a.y.rows, chunks = std::min<int64_t>(rows, 256);
  std::array<Sums, 256> parts{};
  const kernels::Quantize source{.x = a.x, .rotation = a.rotation, .prescale = a.prescale};
  const Numbers numbers(source);
  parallel_for(queue, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t r = rows * i / chunks; r < rows * (i + 1) / chunks; ++r)
        measure_row(parts[static_cast<size_t>(i)], a, numbers, r);
  });
  double* sums = a.sums.as<double>();
  for (size_t s = 0; s < parts[0].size(); ++s) {
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += parts[static_cast<size_t>(i)][s];
    sums[s] = a.add ? sums[s] + total : total;
  }
}

}  // namespace osprey::cpu
