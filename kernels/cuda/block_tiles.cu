// Products of packed matrices by tensor cores, without an image in memory: a block of threads unpacks 64 rows
// of a and of b, 64 elements of each at a time, into bf16 in shared memory. Which rows is either all of them,
// or, beside FP8 products, those that have no E4M3 image; then the blocks share out as many tiles as the
// device finds there are.

#include "kernels/cuda/block_product.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed_matrix.h"
#include "kernels/cuda/row.h"
#include "kernels/cuda/sixteen.h"
#include "kernels/numerics/bf16_image.h"

namespace osprey::cuda {

namespace {

constexpr int side = 64, deep = 64;           // of a tile of y, and elements of a row at a time
constexpr int threads = 128;                  // four warps, a quarter of the tile each
constexpr int piece = side * deep / threads;  // elements that a thread unpacks: half of a row's
constexpr int pitch = deep + 8;               // rows 16 bytes more apart: ldmatrix without bank conflicts
constexpr int per_load = 16;                  // elements under one scale at least
static_assert(piece == 32);

// Eight bytes a member.
template <class T>
struct Tiles {
  PackedMatrix a, b;
  T* y;
  int64_t y_stride, rows, columns, k, block, add;
  int64_t a_whole, b_whole;                 // may 16 bytes be loaded at once?
  double factor;                            // without tensor scales
  const int32_t *a_wide, *a_list, *b_list;  // null: all rows
};

struct alignas(16) Shared {
  uint16_t a[side][pitch], b[side][pitch];
};

/// 32 elements of a row as they are stored.
struct Piece {
  Sixteen raw[2];
  float scale[2];
};

/// `bytes` of them, the others 0.
__device__ inline Sixteen load_some(const uint8_t* p, int64_t bytes, bool whole) {
  if (bytes >= 16) return load_sixteen(p, whole);
  Sixteen s{};
  for (int i = 0; i < 16; ++i)
    if (i < bytes) s.word[i / 4] |= static_cast<uint32_t>(p[i]) << (i % 4 * 8);
  return s;
}

/// Elements from `col` on; zeros where there is no row or the row ends.
__device__ inline Piece load_piece(const PackedMatrix& m, int64_t row, int64_t col, int64_t cols,
                                   int64_t block, bool whole) {
  Piece p{};
  const int64_t left = cols - col;
  if (row < 0 || left <= 0) return p;
  const Element e = m.kind();
  const int bits = element_bits(e);
  const uint8_t* const at = m.codes + row * m.code_stride + col * bits / 8;
  const int64_t bytes = left * bits / 8;
  p.raw[0] = load_some(at, bytes, whole);
  if (bits == 8 && bytes > 16) p.raw[1] = load_some(at + 16, bytes - 16, whole);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (i * per_load < left)
      p.scale[i] =
          bf16_image_scale(e, static_cast<ScaleType>(m.scale), m.scale_at(row, (col + i * per_load) / block));
  return p;
}

/// Eight elements, the lowest first.
__device__ inline uint4 unpack_eight(Element e, uint32_t low, uint32_t high, float scale) {
  const int bits = e == Element::int8 ? 8 : 4;
  uint32_t pair[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t codes = bits == 4 ? low >> (8 * i) : (i < 2 ? low : high) >> (i % 2 * 16);
    pair[i] = pack_bf16x2(bf16_image(e, codes, scale), bf16_image(e, codes >> bits, scale));
  }
  return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

__device__ inline void store_piece(uint16_t* row, Element e, const Piece& p) {
  auto* const to = reinterpret_cast<uint4*>(row);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    to[i] = e == Element::int8 ? unpack_eight(e, p.raw[i / 2].word[i % 2 * 2],
                                              p.raw[i / 2].word[i % 2 * 2 + 1], p.scale[i / 2])
                               : unpack_eight(e, p.raw[0].word[i], 0, p.scale[i / 2]);
}

/// acc += a b^T for this warp's quarter of the tile.
__device__ inline void multiply(const Shared& s, float (&acc)[2][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size,
            warp = static_cast<int>(threadIdx.x) / warp_size, row = warp / 2 * 32, column = warp % 2 * 32;
#pragma unroll
  for (int k = 0; k < deep; k += 16) {
    uint32_t left[2][4], right[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_matrix_x4(left[i], &s.a[row + 16 * i + lane % 16][k + lane / 16 * 8]);
      load_matrix_x4(right[i], &s.b[column + 16 * i + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t two[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
        mma_bf16_16x8x16(acc[i][j], left[i], two);
      }
  }
}

template <class T>
__global__ void __launch_bounds__(threads) tiles_kernel(const Tiles<T> p) {
  Shared& shared = block_shared<Shared>();
  const auto cuts = [](int64_t n) { return (n + side - 1) / side; };
  const bool listed = p.a_list != nullptr;
  const int64_t a_count = listed ? p.a_list[p.rows] : p.rows, b_count = listed ? p.b_list[p.columns] : 0,
                across = cuts(p.columns), b_across = cuts(b_count);
  const int64_t first_part = cuts(a_count) * across, all = first_part + cuts(p.rows) * b_across;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size, warp = thread / warp_size;
  const float factor = static_cast<float>(p.factor) * p.a.whole() * p.b.whole();
  for (int64_t tile = blockIdx.x; tile < all; tile += gridDim.x) {
    // Listed rows of a with all of b; after those, all rows of a with listed ones of b.
    const bool by_b = tile >= first_part;
    const int64_t i = by_b ? tile - first_part : tile, wide = by_b ? b_across : across;
    const int64_t first_row = i / wide * side, first_column = i % wide * side;
    const auto row_of = [&](int64_t r) {
      const int64_t at = first_row + r;
      if (by_b || !listed) return at < p.rows ? at : int64_t{-1};
      return at < a_count ? int64_t{p.a_list[at]} : int64_t{-1};
    };
    const auto column_of = [&](int64_t c) {
      const int64_t at = first_column + c;
      if (!by_b) return at < p.columns ? at : int64_t{-1};
      return at < b_count ? int64_t{p.b_list[at]} : int64_t{-1};
    };
    const int mine = thread / 2, begin = thread % 2 * piece;
    const int64_t a_row = row_of(mine), b_row = column_of(mine);
    const auto load_a = [&](int64_t k) { return load_piece(p.a, a_row, k + begin, p.k, p.block, p.a_whole); };
    const auto load_b = [&](int64_t k) { return load_piece(p.b, b_row, k + begin, p.k, p.block, p.b_whole); };
    float acc[2][4][4] = {};
    Piece a = load_a(0), b = load_b(0);
    for (int64_t k = 0; k < p.k; k += deep) {
      store_piece(&shared.a[mine][begin], p.a.kind(), a);
      store_piece(&shared.b[mine][begin], p.b.kind(), b);
      __syncthreads();
      a = load_a(k + deep);
      b = load_b(k + deep);
      multiply(shared, acc);
      __syncthreads();
    }
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        const int64_t row = row_of(warp / 2 * 32 + 16 * x + lane / 4 + d / 2 * 8);
        if (row < 0 || (by_b && p.a_wide[row] != 0)) continue;
#pragma unroll
        for (int y = 0; y < 4; ++y) {
          const int64_t column = column_of(warp % 2 * 32 + 8 * y + lane % 4 * 2 + d % 2);
          if (column < 0) continue;
          T& to = p.y[row * p.y_stride + column];
          const float sum = acc[x][y][d];
          to = Convert<T>::from(p.add ? fmaf(sum, factor, to_float(to)) : sum * factor);
        }
      }
  }
}

template <class T>
void run(const Queue& queue, const TileProduct& args) {
  const BlockFormat &a = args.a.format, &b = args.b.format;
  const int shift = bf16_image_shift(a.element, a.scale) + bf16_image_shift(b.element, b.scale);
  const Tiles<T> p{.a = packed_matrix(args.a),
                   .b = packed_matrix(args.b),
                   .y = args.y.tensor.as<T>(),
                   .y_stride = args.y.tensor.row_stride(),
                   .rows = args.a.rows,
                   .columns = args.b.rows,
                   .k = args.a.cols,
                   .block = a.block,
                   .add = args.y.add,
                   .a_whole = whole_sixteens(args.a.codes.data, args.a.codes.row_stride()),
                   .b_whole = whole_sixteens(args.b.codes.data, args.b.codes.row_stride()),
                   .factor = static_cast<double>(args.factor) * static_cast<double>(power_of_two(-shift)),
                   .a_wide = args.a_wide.wide,
                   .a_list = args.a_wide.list,
                   .b_list = args.b_wide.list};
  const auto cuts = [](int64_t n) { return (n + side - 1) / side; };
  const int64_t enough = int64_t{4} * stream_of(queue).properties().multiProcessorCount;
  launch("block_matmul", queue,
         {.blocks = static_cast<unsigned>(std::min(cuts(p.rows) * cuts(p.columns), enough)),
          .threads = threads,
          .shared_bytes = sizeof(Shared)},
         tiles_kernel<T>, p);
}

constexpr int listers = 512, per_lister = 8;
struct ListShared {
  int found[listers / warp_size];
};

__global__ void __launch_bounds__(listers) list_kernel(const int32_t* wide, int32_t* list, int64_t count) {
  ListShared& shared = block_shared<ListShared>();
  const int lane = static_cast<int>(threadIdx.x) % warp_size,
            warp = static_cast<int>(threadIdx.x) / warp_size;
  int total = 0;
  for (int64_t base = 0; base < count; base += listers * per_lister) {
    const int64_t first = base + threadIdx.x * int64_t{per_lister};
    unsigned seen = 0;
    for (int i = 0; i < per_lister; ++i)
      if (first + i < count && wide[first + i] != 0) seen |= 1u << i;
    const int mine = __popc(seen);
    int until = mine;  // here, in this warp
    for (int step = 1; step < warp_size; step *= 2) {
      const int other = __shfl_up_sync(full_warp, until, static_cast<unsigned>(step));
      if (lane >= step) until += other;
    }
    if (lane == warp_size - 1) shared.found[warp] = until;
    __syncthreads();
    int at = total + until - mine;
    for (int w = 0; w < listers / warp_size; ++w) {
      if (w < warp) at += shared.found[w];
      total += shared.found[w];
    }
    for (int i = 0; i < per_lister; ++i)
      if (seen >> i & 1u) list[at++] = static_cast<int32_t>(first + i);
    __syncthreads();
  }
  if (threadIdx.x == 0) list[count] = total;
}

}  // namespace

const char* why_no_image(const BlockFormat& f) {
  return f.granularity == Granularity::block && has_bf16_image(f.element, f.scale) && f.block % per_load == 0
             ? nullptr
             : "not all of its numbers are bf16 numbers times a power of two";
}

void multiply_tiles(const Queue& queue, const TileProduct& args) {
  args.y.tensor.dtype == DType::f32 ? run<float>(queue, args) : run<bf16>(queue, args);
}

void list_wide(const Queue& queue, const WideRows& rows, int64_t count) {
  launch("list_wide", queue, {.blocks = 1, .threads = listers, .shared_bytes = sizeof(ListShared)},
         list_kernel, rows.wide, rows.list, count);
}

}  // namespace osprey::cuda
