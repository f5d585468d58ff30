#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/pointwise.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256, warps = threads / warp_size;
/// Tokens looked at between two barriers: `loads` groups of four consecutive ones for each thread.
constexpr int loads = 4, tile = threads * loads * 4;
constexpr int most_rows = 64;

/// What sums start from.
enum class Start : int64_t { zero, what_is_there };

template <class T>
struct EmbeddingGradient {
  float* dweight;
  const T* dy;
  const int32_t* tokens;
  int64_t dweight_stride, dy_stride, vocabulary, cols, count;
  int64_t first;      // token of dweight's first row
  int64_t rows;       // of the vocabulary for each block
  int64_t token_run;  // tokens that one access reads: 4, or 1 where they are not aligned
  Start start;
};

struct Shared {
  uint32_t counts[loads][warps];  // matches
  uint32_t found[tile];           // row of the block << 16 | place in the tile, in the order of tokens
  uint16_t places[tile];          // sorted by row, in the order of tokens for each
  int starts[most_rows + 1];      // where a row's places begin
};

/// Four tokens from `at` on as rows of the block; what is not one of its rows is negative or too large.
template <class T>
__device__ void load_rows(int (&rows)[4], const EmbeddingGradient<T>& a, int64_t at, int64_t first_row) {
  const int first = static_cast<int>(first_row);
  if (a.token_run == 4 && at + 4 <= a.count) {
    const uint4 t = *reinterpret_cast<const uint4*>(a.tokens + at);
    rows[0] = static_cast<int>(t.x), rows[1] = static_cast<int>(t.y);
    rows[2] = static_cast<int>(t.z), rows[3] = static_cast<int>(t.w);
  } else {
    for (int e = 0; e < 4; ++e) rows[e] = at + e < a.count ? a.tokens[at + e] : -1;
  }
  // A negative token minus a row could wrap around to a valid one.
  for (int e = 0; e < 4; ++e) rows[e] = rows[e] < 0 ? -1 : rows[e] - first;
}

/// Sum over the lanes before this one and itself. Four counts of up to 128 fit into the bytes of one word.
__device__ inline uint32_t warp_prefix(uint32_t v) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int d = 1; d < warp_size; d *= 2) {
    const uint32_t before = __shfl_sync(full_warp, v, lane >= d ? lane - d : lane);
    if (lane >= d) v += before;
  }
  return v;
}

/// Writes the tile's tokens that belong to the block into shared.found, in their order; returns how many.
template <class T>
__device__ int find(const EmbeddingGradient<T>& a, int64_t start, int64_t first_row, int rows_here,
                    Shared& s) {
  const int t = static_cast<int>(threadIdx.x), lane = t % warp_size, warp = t / warp_size;
  int rows[loads][4];
  uint32_t counts = 0;
#pragma unroll
  for (int k = 0; k < loads; ++k) load_rows(rows[k], a, start + (k * threads + t) * 4, first_row);
#pragma unroll
  for (int k = 0; k < loads; ++k)
    for (int e = 0; e < 4; ++e) counts += (0 <= rows[k][e] && rows[k][e] < rows_here ? 1u : 0u) << (8 * k);
  const uint32_t upto = warp_prefix(counts), before = upto - counts;
  if (lane == warp_size - 1)
    for (int k = 0; k < loads; ++k) s.counts[k][warp] = upto >> (8 * k) & 255u;
  __syncthreads();
  static_assert(loads * warps == warp_size);
  const uint32_t group = s.counts[lane / warps][lane % warps], groups_upto = warp_prefix(group);
#pragma unroll
  for (int k = 0; k < loads; ++k) {
    uint32_t at = __shfl_sync(full_warp, groups_upto - group, k * warps + warp) + (before >> (8 * k) & 255u);
    for (int e = 0; e < 4; ++e)
      if (0 <= rows[k][e] && rows[k][e] < rows_here)
        s.found[at++] =
            static_cast<uint32_t>(rows[k][e]) << 16 | static_cast<uint32_t>((k * threads + t) * 4 + e);
  }
  const uint32_t total = __shfl_sync(full_warp, groups_upto, warp_size - 1);
  __syncthreads();
  return static_cast<int>(total);
}

/// Sorts what was found by row, in the order of tokens for each: a thread a row.
__device__ inline void sort(int found, int rows_here, Shared& s) {
  const int row = static_cast<int>(threadIdx.x);
  if (row < rows_here) {
    int start = 0;
    for (int i = 0; i < found; ++i) start += static_cast<int>(s.found[i] >> 16) < row;
    s.starts[row] = start;
    for (int i = 0; i < found; ++i)
      if (static_cast<int>(s.found[i] >> 16) == row) s.places[start++] = static_cast<uint16_t>(s.found[i]);
    if (row == rows_here - 1) s.starts[rows_here] = start;
  }
  __syncthreads();
}

/// A row's sum goes on through its places; eight rows of dy are on their way at a time.
template <class T, int V>
__device__ void add_rows(float* sum, const T* dy, int64_t stride, const uint16_t* places, int count) {
  constexpr int ahead = 8;
  const auto old = Pack<float, V>::load(sum);
  float v[V];
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = old[i];
  for (int n = 0; n < count; n += ahead) {
    Pack<T, V> packs[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k)
      if (n + k < count) packs[k] = Pack<T, V>::load(dy + places[n + k] * stride);
#pragma unroll
    for (int k = 0; k < ahead; ++k)
      if (n + k < count)
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] += packs[k][i];
  }
  Pack<float, V>::from(v).store(sum);
}

/// A block owns some rows of the vocabulary, looks at all tokens and adds up those that are its own, in
/// order: no sorting of tokens and no atomics. A thread owns columns: whole groups of threads share a row.
template <class T, int V>
__global__ void embedding_backward_kernel(EmbeddingGradient<T> a) {
  Shared& s = block_shared<Shared>();
  const int64_t first_row = int64_t{blockIdx.x} * a.rows;
  const int rows_here =
      static_cast<int>(a.vocabulary - first_row < a.rows ? a.vocabulary - first_row : a.rows);
  const int64_t packs = (a.cols + V - 1) / V;
  int sharing = warp_size;  // threads for one row
  while (sharing < packs && sharing < threads) sharing *= 2;
  const int group = static_cast<int>(threadIdx.x) / sharing, groups = threads / sharing;
  const int64_t first_col = static_cast<int64_t>(threadIdx.x % sharing) * V, step = int64_t{sharing} * V;
  float* dweight = a.dweight + first_row * a.dweight_stride;
  if (a.start == Start::zero) {
    const float zeros[V] = {};
    for (int r = group; r < rows_here; r += groups)
      for (int64_t c = first_col; c < a.cols; c += step)
        Pack<float, V>::from(zeros).store(dweight + r * a.dweight_stride + c);
  }
  for (int64_t start = 0; start < a.count; start += tile) {
    const int found = find(a, start, a.first + first_row, rows_here, s);
    if (found == 0) continue;
    sort(found, rows_here, s);
    for (int r = group; r < rows_here; r += groups) {
      const int begin = s.starts[r], count = s.starts[r + 1] - begin;
      for (int64_t c = first_col; c < a.cols && count > 0; c += step)
        add_rows<T, V>(dweight + r * a.dweight_stride + c, a.dy + start * a.dy_stride + c, a.dy_stride,
                       s.places + begin, count);
    }
    __syncthreads();
  }
}

template <class T>
void run(const Queue& queue, const kernels::EmbeddingBackward& b) {
  const Tensor& to = b.dweight.tensor;
  const int64_t vocabulary = to.rows();
  // Enough blocks for every multiprocessor, few enough that looking at all tokens stays cheap.
  const int64_t rows = std::clamp<int64_t>(vocabulary / 512, 8, most_rows);
  const int32_t* tokens = b.tokens.as<int32_t>();
  const EmbeddingGradient<T> a{.dweight = to.as<float>(),
                               .dy = b.dy.as<T>(),
                               .tokens = tokens,
                               .dweight_stride = to.row_stride(),
                               .dy_stride = b.dy.row_stride(),
                               .vocabulary = vocabulary,
                               .cols = to.cols(),
                               .count = b.tokens.numel(),
                               .first = b.first_row,
                               .rows = rows,
                               .token_run = reinterpret_cast<uintptr_t>(tokens) % 16 == 0 ? 4 : 1,
                               .start = b.dweight.add ? Start::what_is_there : Start::zero};
  constexpr int V = vector_length<T>;
  const bool fits =
      vectorizable(a.dy, a.dy_stride, a.cols) && vectorizable(a.dweight, a.dweight_stride, a.cols);
  launch("embedding backward", queue,
         {.blocks = static_cast<unsigned>((vocabulary + rows - 1) / rows),
          .threads = threads,
          .shared_bytes = sizeof(Shared)},
         fits ? embedding_backward_kernel<T, V> : embedding_backward_kernel<T, 1>, a);
}

}  // namespace

void embedding_backward(const Queue& queue, const kernels::EmbeddingBackward& b) {
  b.dy.dtype == DType::bf16 ? run<bf16>(queue, b) : run<float>(queue, b);
}

}  // namespace osprey::cuda
