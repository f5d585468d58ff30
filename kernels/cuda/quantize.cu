#include "kernels/quantize.h"

#include <algorithm>

#include "kernels/cuda/four.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/block_codec.h"
#include "kernels/numerics/step_size.h"

namespace osprey::cuda {

namespace {

// A warp works on a span of 128 elements of a row of y, four in a lane: no block and no rotation is longer.
constexpr int warps = 8, threads = warps * warp_size, per_lane = 4, span = per_lane * warp_size;
constexpr int tile_rows = 32;  // of y, that a block makes where x is read by columns

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
Blocks blocks(const Packed& p) {
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

/// One bit an element; without data all are 1.
struct Bits {
  uint8_t* data;
  int64_t stride;
};
Bits bits_of(const Tensor& mask) {
  return mask.defined() ? Bits{mask.as<uint8_t>(), mask.row_stride()} : Bits{nullptr, 0};
}

template <class T>
struct Masked {
  Dense<T> x;
  Bits mask;
  __device__ Four four(int64_t row, int64_t col, int64_t left) const {
    Four f = x.four(row, col, left);
    if (!mask.data || left <= 0) return f;
    const int kept = mask.data[row * mask.stride + col / 8] >> (col % 8);
#pragma unroll
    for (int i = 0; i < per_lane; ++i)
      if (!(kept >> i & 1)) f.v[i] = 0;
    return f;
  }
};

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
        // Sums of neighbours first: an order that kernels/cpu/isa/quantize.cpp shares.
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

__global__ void draw_signs(uint64_t* signs, uint64_t seed, uint64_t stream, const double* step) {
  const Philox p = rotation_signs(seed, stream_at(stream, step));
  signs[0] = low_signs_of(p);
  signs[1] = high_signs_of(p);
}

const double* step_of(const Tensor& step) { return step.defined() ? step.as<double>() : nullptr; }

/// `drawn_signs`: two words of device memory for signs that depend on a step, or null where there is none.
Turn turn(const Queue& queue, const kernels::Rotation& r, float prescale, int64_t transposed,
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

__device__ inline float finite_or_zero(float v) { return magnitude_bits(v) < float_infinity ? v : 0.0f; }

/// The largest of the magnitude bits of `lanes` neighbouring lanes, in all of them.
__device__ inline uint32_t largest_of(const float (&v)[per_lane], int lanes) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < per_lane; ++i) most = max(most, magnitude_bits(v[i]));
  for (int lane = 1; lane < lanes; lane *= 2) most = max(most, __shfl_xor_sync(full_warp, most, lane));
  return most;
}
__device__ inline int64_t sum_of(int64_t v, int lanes) {
  for (int lane = 1; lane < lanes; lane *= 2)
    v += static_cast<int64_t>(__shfl_xor_sync(full_warp, static_cast<long long>(v), lane));
  return v;
}

/// Sum of the magnitudes of a lane in units of 2^unit_exponent(most); 0 where `most` is no number.
__device__ inline int64_t magnitudes(const float (&v)[per_lane], uint32_t most) {
  int64_t sum = 0;
  if (most >= float_infinity) return sum;
#pragma unroll
  for (int i = 0; i < per_lane; ++i) sum += in_units(bits_float(magnitude_bits(v[i])), unit_exponent(most));
  return sum;
}

// What becomes of four numbers of a lane, in columns from `col` on. All lanes of a warp call these, some of
// them with no columns of the matrix.

/// Into `largest` of each row, or of all: the pass before the one that rounds where a scale covers so much.
struct FindLargest {
  unsigned* largest;
  int64_t by_row, finite;
  __device__ void operator()(float (&v)[per_lane], int64_t row, int64_t) const {
    if (finite)
#pragma unroll
      for (int i = 0; i < per_lane; ++i) v[i] = finite_or_zero(v[i]);
    const uint32_t most = largest_of(v, warp_size);
    unsigned* known = largest + (by_row ? row : 0);  // it only grows: most warps need not wait for it
    if (threadIdx.x % warp_size == 0 && most > *known) atomicMax(known, most);
  }
};

/// Into `sums` of each row, or of all, the magnitudes in units of the largest's: after FindLargest, for rule
/// stats.
struct FindMagnitudes {
  const unsigned* largest;
  unsigned long long* sums;
  int64_t by_row;
  __device__ void operator()(float (&v)[per_lane], int64_t row, int64_t) const {
    const uint32_t most = largest[by_row ? row : 0];
    const int64_t sum = sum_of(magnitudes(v, most), warp_size);
    if (threadIdx.x % warp_size == 0)
      atomicAdd(sums + (by_row ? row : 0), static_cast<unsigned long long>(sum));
  }
};

/// Learnt step sizes, bf16 or f32.
struct StepSizes {
  const void* data;
  int64_t half;
  __device__ float at(int64_t i) const {
    return half ? to_float(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
};

struct Encode {
  Blocks y;
  Bits mask;
  StepSizes sizes;                 // of rule lsq
  const unsigned* largest;         // as FindLargest left it, or null
  const unsigned long long* sums;  // as FindMagnitudes left them, or null
  int64_t rule, stochastic;
  uint64_t seed, stream;
  const double* step;

  __device__ ScaleRule scale_rule() const { return static_cast<ScaleRule>(rule); }
  __device__ Element element() const { return static_cast<Element>(y.element); }

  __device__ uint32_t e8m0(const float (&v)[per_lane], uint32_t most, int lanes) const {
    if (scale_rule() != ScaleRule::mse) return e8m0_of_largest(element(), scale_rule(), most);
    const int unit = unit_exponent(most < float_infinity ? most : 0);
    int64_t sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      const int64_t k = most < float_infinity ? in_units(v[i], unit) : 0;
      sum += k;
      squares += k * k;
    }
    sum = sum_of(sum, lanes);
    squares = sum_of(squares, lanes);
    return e8m0_of_deviation(most, y.block, sum, squares);
  }
  __device__ BlockScale e4m3(const float (&v)[per_lane], uint32_t most, int lanes,
                             const TensorScale& tensor) const {
    const BlockScale six = block_scale_e4m3(element(), most, tensor, 1.0f);
    if (scale_rule() != ScaleRule::four_over_six) return six;
    const BlockScale four = block_scale_e4m3(element(), most, tensor, 1.5f);
    int64_t six_better = 0;
    if (most < float_infinity) {
      const int unit = unit_exponent(most);
#pragma unroll
      for (int i = 0; i < per_lane; ++i) {
        const int64_t s = error_in_units(element(), v[i], six, tensor.down, unit),
                      f = error_in_units(element(), v[i], four, tensor.down, unit);
        six_better += f * f - s * s;
      }
    }
    return sum_of(six_better, lanes) < 0 ? four : six;
  }
  __device__ BlockScale scale(const float (&v)[per_lane], int64_t row, int64_t col, int lanes) const {
    const uint32_t most = y.by_block ? largest_of(v, lanes) : largest[y.by_row ? row : 0];
    switch (y.scale_type()) {
      case ScaleType::e8m0:
        return block_scale_e8m0(e8m0(v, most, lanes), most);
      case ScaleType::e4m3: {
        const TensorScale tensor = tensor_scale_of(element(), scale_rule(), *largest);
        if (row == 0 && col == 0) *y.tensor_scale = tensor.down;
        return e4m3(v, most, lanes, tensor);
      }
      default:
        return scale_rule() == ScaleRule::stats ? stats(v, most, row, lanes)
               : scale_rule() == ScaleRule::lsq
                   ? block_scale_lsq(element(), most, sizes.at(y.by_row ? row : 0))
                   : block_scale_f32(element(), most);
    }
  }
  __device__ BlockScale stats(const float (&v)[per_lane], uint32_t most, int64_t row, int lanes) const {
    if (y.by_block) return block_scale_stats(element(), most, y.block, sum_of(magnitudes(v, most), lanes));
    const int64_t sharing = y.by_row ? y.cols : y.rows * y.cols;
    return block_scale_stats(element(), most, sharing, static_cast<int64_t>(sums[y.by_row ? row : 0]));
  }

  /// Four draws from number `first` on, which lie in one group of the generator or in two.
  struct Draws {
    Philox group, next;
    int at;
    __device__ Draws(uint64_t seed, uint64_t stream, uint64_t first) : at(static_cast<int>(first % 8)) {
      group = draw_group(seed, stream, first / 8);
      next = at > 8 - per_lane ? draw_group(seed, stream, first / 8 + 1) : group;
    }
    __device__ uint32_t operator[](int i) const {
      return at + i < 8 ? draw_of(group, at + i) : draw_of(next, at + i - 8);
    }
  };

  __device__ void operator()(float (&v)[per_lane], int64_t row, int64_t col) const {
    const int lanes = y.by_block ? static_cast<int>(y.block) / per_lane : warp_size;
    const BlockScale s = scale(v, row, col, lanes);
    const ElementLayout l = y.layout();
    const float limit = clip_limit(element(), y.scale_type(), scale_rule());
    uint32_t codes = 0, kept = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      const float x = v[i] * s.inverse;
      kept |= static_cast<uint32_t>(bits_float(magnitude_bits(x)) <= limit) << i;
      if (!stochastic && s.inverse > 0) codes |= encode_nearest(l, x) << (i * l.bits);
    }
    if (stochastic && s.inverse > 0) {
      const Draws draws(seed, stream_at(stream, step), static_cast<uint64_t>(row * y.cols + col));
#pragma unroll
      for (int i = 0; i < per_lane; ++i)
        codes |= encode_stochastic(l, v[i] * s.inverse, draws[i]) << (i * l.bits);
    }
    const uint32_t both = kept | __shfl_xor_sync(full_warp, kept, 1) << per_lane;
    if (col >= y.cols) return;

    const bool first = y.by_block ? col % y.block == 0 : col == 0 && (y.by_row || row == 0);
    if (first) y.store_scale(y.scale_place(row, col), s.stored);
    const int left = static_cast<int>(min(y.cols - col, int64_t{per_lane}));
    store_bytes(y.codes + row * y.codes_stride + col * l.bits / 8, codes, left * l.bits / 8);
    if (mask.data && col % 8 == 0) mask.data[row * mask.stride + col / 8] = static_cast<uint8_t>(both);
  }

  __device__ static void store_bytes(uint8_t* p, uint32_t word, int count) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (count == 4 && address % 4 == 0)
      *reinterpret_cast<uint32_t*>(p) = word;
    else if (count == 2 && address % 2 == 0)
      *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(word);
    else
      for (int i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(word >> (8 * i));
  }
};

template <class T>
struct Store {
  T* y;
  int64_t stride, cols, add;
  __device__ void operator()(float (&v)[per_lane], int64_t row, int64_t col) const {
    T* p = y + row * stride + col;
    const int64_t left = cols - col;
    Four f{{v[0], v[1], v[2], v[3]}};
    if (add) {
      const Four base = load_four(p, left);
#pragma unroll
      for (int i = 0; i < per_lane; ++i) f.v[i] += base.v[i];
    }
    store_four(p, left, f);
  }
};
template <class T>
Store<T> store(const Tensor& t, bool add) {
  return {t.as<T>(), t.row_stride(), t.cols(), add};
}

/// Of what goes out; what comes in has it too, or its transpose.
struct Extent {
  int64_t rows, cols;
};

template <class Source, class Sink>
__global__ void __launch_bounds__(threads) by_rows(Extent e, Source source, Turn turned, Sink sink) {
  const int64_t spans = (e.cols + span - 1) / span,
                item = int64_t{blockIdx.x} * warps + threadIdx.x / warp_size, row = item / spans;
  if (row >= e.rows) return;
  const int64_t col = (item - row * spans) * span + threadIdx.x % warp_size * per_lane;
  Four f = source.four(row, col, e.cols - col);
  turned(f.v, col);
  sink(f.v, row, col);
}

struct Tile {
  float x[span][tile_rows + 1];
};

/// Block (i, j) makes rows 32 i ... of y, columns 128 j ...
template <class Source, class Sink>
__global__ void __launch_bounds__(threads) by_columns(Extent e, Source source, Turn turned, Sink sink) {
  Tile& tile = block_shared<Tile>();
  const int lane = static_cast<int>(threadIdx.x) % warp_size,
            warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t first_row = int64_t{blockIdx.x} * tile_rows, first_col = int64_t{blockIdx.y} * span;
  for (int c = warp; c < span; c += warps)
    tile.x[c][lane] = first_col + c < e.cols && first_row + lane < e.rows
                          ? source.at(first_col + c, first_row + lane)
                          : 0.0f;
  __syncthreads();
  const int64_t col = first_col + lane * per_lane;
  for (int r = warp; r < tile_rows && first_row + r < e.rows; r += warps) {
    float v[per_lane];
#pragma unroll
    for (int i = 0; i < per_lane; ++i) v[i] = tile.x[lane * per_lane + i][r];
    turned(v, col);
    sink(v, first_row + r, col);
  }
}

template <class Source, class Sink>
void each(const char* op, const Queue& queue, const Extent& e, bool transpose, const Source& source,
          const Turn& turned, const Sink& sink) {
  const int64_t spans = (e.cols + span - 1) / span;
  if (transpose)
    launch(op, queue,
           {.blocks = dim3(static_cast<unsigned>((e.rows + tile_rows - 1) / tile_rows),
                           static_cast<unsigned>(spans)),
            .threads = threads,
            .shared_bytes = sizeof(Tile)},
           by_columns<Source, Sink>, e, source, turned, sink);
  else
    launch(op, queue,
           {.blocks = static_cast<unsigned>((e.rows * spans + warps - 1) / warps), .threads = threads},
           by_rows<Source, Sink>, e, source, turned, sink);
}

/// What quantize() reads, whatever its type.
template <class Run>
void with_source(const Tensor& x, const Packed& packed_x, const Run& run) {
  if (!x.defined())
    run(blocks(packed_x));
  else if (x.dtype == DType::bf16)
    run(dense<bf16>(x));
  else
    run(dense<float>(x));
}

constexpr int64_t sign_bytes = 256;

__global__ void zero_words(unsigned* words, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) words[i] = 0;
}

}  // namespace

void quantize(const Queue& queue, const kernels::Quantize& a) {
  const BlockFormat& f = a.y.format;
  const Extent extent{a.y.rows, a.y.cols};
  const bool by_row = f.granularity == Granularity::row;
  // Scratch, after the signs: sums of magnitudes, then the largest.
  const int64_t lines = by_row ? a.y.rows : 1, words = 3 * lines;
  char* scratch = static_cast<char*>(
      stream_of(queue).scratch(sign_bytes + words * static_cast<int64_t>(sizeof(unsigned))));
  const Turn turned = turn(queue, a.rotation, a.prescale, 0, reinterpret_cast<uint64_t*>(scratch));
  unsigned* largest = nullptr;
  unsigned long long* sums = nullptr;
  if (f.granularity != Granularity::block || f.scale == ScaleType::e4m3) {
    sums = reinterpret_cast<unsigned long long*>(scratch + sign_bytes);
    largest = reinterpret_cast<unsigned*>(sums + lines);
    launch("quantize", queue,
           {.blocks = static_cast<unsigned>((words + threads - 1) / threads), .threads = threads}, zero_words,
           reinterpret_cast<unsigned*>(sums), words);
  }
  with_source(a.x, a.packed_x, [&](const auto& source) {
    if (largest)
      each("quantize", queue, extent, a.transpose, source, turned,
           FindLargest{.largest = largest, .by_row = by_row, .finite = f.scale == ScaleType::e4m3});
    if (largest && a.rule == ScaleRule::stats)
      each("quantize", queue, extent, a.transpose, source, turned,
           FindMagnitudes{.largest = largest, .sums = sums, .by_row = by_row});
    each("quantize", queue, extent, a.transpose, source, turned,
         Encode{.y = blocks(a.y),
                .mask = bits_of(a.mask),
                .sizes = {a.step.data, a.step.dtype == DType::bf16},
                .largest = largest,
                .sums = sums,
                .rule = static_cast<int64_t>(a.rule),
                .stochastic = a.rounding.kind == kernels::Rounding::Kind::stochastic,
                .seed = a.rounding.seed,
                .stream = a.rounding.stream,
                .step = step_of(a.rounding.step)});
  });
}

void dequantize(const Queue& queue, const kernels::Dequantize& a) {
  const Extent extent{a.y.rows(), a.y.cols()};
  const Turn turned = turn(queue, {}, a.factor, 0, nullptr);
  if (a.y.dtype == DType::bf16)
    each("dequantize", queue, extent, a.transpose, blocks(a.x), turned, store<bf16>(a.y, false));
  else
    each("dequantize", queue, extent, a.transpose, blocks(a.x), turned, store<float>(a.y, false));
}

namespace {

template <class T, class U>
void unrotate_as(const Queue& queue, const kernels::Unrotate& a) {
  const Extent extent{a.x.rows(), a.x.cols()};
  const int64_t spans = (extent.cols + span - 1) / span;
  launch("unrotate", queue,
         {.blocks = static_cast<unsigned>((extent.rows * spans + warps - 1) / warps), .threads = threads},
         by_rows<Masked<T>, Store<U>>, extent, Masked<T>{dense<T>(a.x), bits_of(a.mask)},
         turn(queue, a.rotation, 1, 1, nullptr), store<U>(a.y.tensor, a.y.add));
}

}  // namespace

void unrotate(const Queue& queue, const kernels::Unrotate& a) {
  const bool x_half = a.x.dtype == DType::bf16, y_half = a.y.tensor.dtype == DType::bf16;
  if (x_half)
    y_half ? unrotate_as<bf16, bf16>(queue, a) : unrotate_as<bf16, float>(queue, a);
  else
    y_half ? unrotate_as<float, bf16>(queue, a) : unrotate_as<float, float>(queue, a);
}

namespace {

constexpr int sums = static_cast<int>(kernels::quantization_sums);
constexpr int64_t most_chunks = 256;

struct MeasureShared {
  double sums[warps];
};

/// Counts rows whose scales span more than 2^3, and more than 2^14.
__device__ void count_span(double (&total)[sums], const Blocks& y, int64_t row) {
  float least = bits_float(float_infinity), most = 0;
  for (int64_t col = 0; col < y.cols; col += y.by_block ? y.block : y.cols) {
    const uint32_t stored = y.stored_scale(y.scale_place(row, col));
    const float scale = decode_scale(y.scale_type(), stored);
    if (stored == 0 || !(scale < bits_float(float_infinity))) continue;
    least = scale < least ? scale : least;
    most = scale > most ? scale : most;
  }
  const double ratio = most > 0 ? static_cast<double>(most) / static_cast<double>(least) : 1;
  total[6] += ratio > 8;
  total[7] += ratio > 16384;
}

/// Block i sums over a run of rows, into partial[i].
template <class T>
__global__ void __launch_bounds__(threads)
    measure(Dense<T> x, Turn turned, Blocks y, int64_t rule, double* partial) {
  MeasureShared& shared = block_shared<MeasureShared>();
  const int64_t begin = y.rows * blockIdx.x / gridDim.x, end = y.rows * (blockIdx.x + int64_t{1}) / gridDim.x;
  const int64_t spans = (y.cols + span - 1) / span;
  const float limit =
      clip_limit(static_cast<Element>(y.element), y.scale_type(), static_cast<ScaleRule>(rule));
  double total[sums] = {};
  for (int64_t item = threadIdx.x / warp_size; item < (end - begin) * spans; item += warps) {
    const int64_t row = begin + item / spans, col = item % spans * span + threadIdx.x % warp_size * per_lane,
                  left = y.cols - col;
    Four f = x.four(row, col, left);
    turned(f.v, col);
    if (left <= 0) continue;
    const Four q = y.four(row, col, left);
    const float inverse = inverse_scale(y.scale_type(), y.stored_scale(y.scale_place(row, col)), y.whole());
    for (int i = 0; i < per_lane && i < left; ++i) {
      const float v = f.v[i], off = q.v[i] - v;
      total[0] += static_cast<double>(v) * static_cast<double>(v);
      total[1] += static_cast<double>(off) * static_cast<double>(off);
      total[2] += 1;
      total[3] += fabsf(v * inverse) > limit;
      total[4] += v != 0 && q.v[i] == 0;
    }
  }
  for (int64_t row = begin + threadIdx.x; row < end; row += threads) {
    total[5] += 1;
    count_span(total, y, row);
  }
  for (int s = 0; s < sums; ++s) {
    const double sum = block_sum(total[s], shared.sums);
    if (threadIdx.x == 0) partial[blockIdx.x * sums + s] = sum;
  }
}

__global__ void add_partials(const double* partial, int64_t count, double* out, int64_t add) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += partial[i * sums + threadIdx.x];
  out[threadIdx.x] = add ? out[threadIdx.x] + total : total;
}

}  // namespace

void measure_quantization(const Queue& queue, const kernels::MeasureQuantization& a) {
  const int64_t chunks = std::min(a.y.rows, most_chunks);
  // Scratch: signs first, then the sums of the chunks.
  char* scratch = static_cast<char*>(
      stream_of(queue).scratch(sign_bytes + most_chunks * sums * static_cast<int64_t>(sizeof(double))));
  double* partial = reinterpret_cast<double*>(scratch + sign_bytes);
  const Turn turned = turn(queue, a.rotation, a.prescale, 0, reinterpret_cast<uint64_t*>(scratch));
  const auto run = [&](const auto& x, auto kernel) {
    launch(
        "measure_quantization", queue,
        {.blocks = static_cast<unsigned>(chunks), .threads = threads, .shared_bytes = sizeof(MeasureShared)},
        kernel, x, turned, blocks(a.y), static_cast<int64_t>(a.rule), partial);
  };
  if (a.x.dtype == DType::bf16)
    run(dense<bf16>(a.x), measure<bf16>);
  else
    run(dense<float>(a.x), measure<float>);
  launch("measure_quantization", queue, {.blocks = 1, .threads = sums}, add_partials, partial, chunks,
         a.sums.as<double>(), int64_t{a.add});
}

}  // namespace osprey::cuda
