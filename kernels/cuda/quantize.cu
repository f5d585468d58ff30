#include "kernels/quantize.h"

#include <algorithm>

#include "kernels/cuda/packed_spans.h"
#include "kernels/numerics/step_size.h"

namespace osprey::cuda {

namespace {

constexpr int tile_rows = 32;  // of y, that a block makes where x is read by columns

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
    if (scale_rule() == ScaleRule::rceil) return block_scale_e4m3_up(element(), most, tensor);
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
    __device__ Draws(uint64_t seed, uint64_t stream, uint64_t first) : at(static_cast<int>(first % 16)) {
      group = draw_group(seed, stream, first / 16);
      next = at > 16 - per_lane ? draw_group(seed, stream, first / 16 + 1) : group;
    }
    __device__ uint32_t operator[](int i) const {
      return at + i < 16 ? draw_of(group, at + i) : draw_of(next, at + i - 16);
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

}  // namespace osprey::cuda
