// One block takes 128 queries of one head (64 in f32 and above 128 columns) through the keys they see, as in
// FlashAttention-2: the query tile and a window of two key and value tiles lie in shared memory, the next
// tile travels while the present one is multiplied, running maximum, sum and output stay in registers. Tiles
// that no query of the block sees, above the diagonal or before its documents, are not read. A clip needs
// each row's sum before its first product with values, so keys are swept twice then, which is half again the
// arithmetic.
//
// What to expect of bf16, not measured: a warp multiplies 32 rows with every fragment of keys and values that
// it reads, so shared memory (128 bytes a clock) keeps up with mma.sync, which reaches about 60 percent of an
// H100's tensor cores; the exponentials, which nothing but the other block of the multiprocessor hides, take
// their share: a third of peak for head sizes of 64 and 128 and long rows. Above 128 columns a warp has
// registers for 16 rows only and reads twice as much. f32 is for checking, not for speed. Shared memory of a
// block: in bf16 70 KB at 128 columns and 102 KB at 256; in f32 62, 111 and 139 KB at 64, 128 and 256. An
// A100 has 166 KB, an H100 232 KB, an L40 101 KB.
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/cudnn.h"

namespace osprey::cuda {

namespace {

/// What happens to the scores of a tile.
enum class Sweep {
  online,   // running maximum and sum, values gathered and rescaled: plain softmax in one sweep
  measure,  // running maximum and sum only: first sweep of the clipped softmax
  clip,     // final probabilities, clipped, values gathered: second sweep
};
enum class Softmax { plain, clipped };

/// Of a warp.
template <class T, int D>
inline constexpr int query_strips = sizeof(T) == 2 && D <= 128 ? 2 : 1;
template <class T, int D>
inline constexpr int block_queries = query_strips<T, D>* attention_warps* strip_rows;
template <class T, int D>
inline constexpr int tile_keys = sizeof(T) == 2 ? (D > 64 ? 32 : 64) : (D > 128 ? 16 : 32);

template <class T, int D>
struct ForwardShared {
  Tile<T, block_queries<T, D>, D> q;
  Tile<T, tile_keys<T, D>, D> k[2], v[2];
  Patch<T, tile_keys<T, D>> patch[attention_warps];
  int least_start[attention_warps];
};

template <class T>
struct ForwardParams {
  AttentionProblem problem;
  Rows<const T> q, k, v, gate;
  Rows<T> o;
  float* lse;
};

template <class T, int D>
struct ForwardBlock {
  static constexpr int keys = tile_keys<T, D>, strips = query_strips<T, D>, warp_rows = strips * strip_rows;
  static constexpr int own =
      2 * strips;  // rows that a thread holds parts of: of strip i its rows 2 i and 2 i + 1
  const ForwardParams<T>& p;
  ForwardShared<T, D>& shared;
  int sequence, head, kv_head, first_row, first_tile, end_tile;
  int warp, lane;
  int latest_start;  // of the warp's rows
  int start[own];    // first visible key
  float top[own];    // running maximum, base 2; the logarithm of the sum once that is known
  float sum[own];    // this lane's part of the sum of exponentials
  Strip<D> out[strips];

  __device__ int64_t first_token() const { return static_cast<int64_t>(sequence) * p.problem.tokens; }
  __device__ int warp_row() const { return first_row + warp * warp_rows; }
  /// A thread's row r within the sequence.
  __device__ int row(int r) const { return warp_row() + r / 2 * strip_rows + r % 2 * 8 + lane / 4; }

  __device__ void prepare() {
    const AttentionProblem& a = p.problem;
    const float sink = sink_logit(a, head);
    int least = a.tokens, most = 0;
#pragma unroll
    for (int r = 0; r < own; ++r) {
      start[r] = first_key(a, sequence, row(r));
      top[r] = sink;
      sum[r] = a.has_sink() && lane % 4 == 0 ? 1.0f : 0.0f;
      if (row(r) >= a.tokens) continue;
      least = start[r] < least ? start[r] : least;
      most = start[r] > most ? start[r] : most;
    }
    latest_start = warp_max(most);
    least = warp_min(least);
    if (lane == 0) shared.least_start[warp] = least;
    __syncthreads();
    for (int w = 0; w < attention_warps; ++w)
      least = shared.least_start[w] < least ? shared.least_start[w] : least;
    const int end_row = first_row + block_queries<T, D>;
    first_tile = least / keys;
    end_tile = ((end_row < a.tokens ? end_row : a.tokens) + keys - 1) / keys;
    load_tile(shared.q, p.q, first_token() + first_row, a.tokens - first_row,
              static_cast<int64_t>(head) * a.head_size, a.head_size);
#pragma unroll
    for (int i = 0; i < strips; ++i) out[i].clear();
  }

  template <Sweep sweep>
  __device__ void load_keys(int tile) {
    const AttentionProblem& a = p.problem;
    const int stage = (tile - first_tile) % 2, valid = a.tokens - tile * keys;
    const int64_t at = first_token() + tile * keys, column = static_cast<int64_t>(kv_head) * a.head_size;
    load_tile(shared.k[stage], p.k, at, valid, column, a.head_size);
    if constexpr (sweep != Sweep::measure) load_tile(shared.v[stage], p.v, at, valid, column, a.head_size);
    copy_async_commit();
  }

  template <Sweep sweep>
  __device__ void run() {
    __syncthreads();  // the first tile's place may still be read
    load_keys<sweep>(first_tile);
    for (int tile = first_tile; tile < end_tile; ++tile) {
      copy_async_wait<0>();
      __syncthreads();
      if (tile + 1 < end_tile) load_keys<sweep>(tile + 1);
      if (tile * keys < warp_row() + warp_rows && warp_row() < p.problem.tokens) take<sweep>(tile);
    }
  }

  template <Sweep sweep>
  __device__ void take(int tile) {
    const int stage = (tile - first_tile) % 2, first = tile * keys;
    Strip<keys> s[strips];
    multiply_transposed(s, shared.q.row(warp * warp_rows), shared.k[stage]);
    if (first + keys - 1 > warp_row() || latest_start > first) hide(s, first);
#pragma unroll
    for (int r = 0; r < own; ++r) {
      if constexpr (sweep == Sweep::clip)
        clipped_probabilities(s[r / 2], r);
      else
        online_probabilities<sweep>(s[r / 2], r);
    }
    if constexpr (sweep != Sweep::measure) multiply_add(out, s, shared.v[stage], 0, shared.patch[warp]);
  }

  /// Scores of keys that a row does not see become -infinity.
  __device__ void hide(Strip<keys> (&s)[strips], int first) const {
#pragma unroll
    for (int r = 0; r < own; ++r)
#pragma unroll
      for (int n = 0; n < keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = first + n * 8 + lane % 4 * 2 + e;
          if (key > row(r) || key < start[r]) s[r / 2].v[n][r % 2 * 2 + e] = -INFINITY;
        }
  }

  template <Sweep sweep>
  __device__ void online_probabilities(Strip<keys>& s, int r) {
    const float factor = p.problem.factor;
    const int even = r % 2 * 2, odd = even + 1;
    float most = -INFINITY;
#pragma unroll
    for (int n = 0; n < keys / 8; ++n) most = fmaxf(most, fmaxf(s.v[n][even], s.v[n][odd]));
    const float next = fmaxf(row_max(most) * factor, top[r]);
    // While a row has seen nothing its maximum is -infinity; shifting by 0 keeps exponents defined.
    const float shift = next == -INFINITY ? 0.0f : next, decay = fast_exp2(top[r] - shift);
    top[r] = next;
    sum[r] *= decay;
#pragma unroll
    for (int n = 0; n < keys / 8; ++n) {
      s.v[n][even] = fast_exp2(s.v[n][even] * factor - shift);
      s.v[n][odd] = fast_exp2(s.v[n][odd] * factor - shift);
      sum[r] += s.v[n][even] + s.v[n][odd];
    }
    if constexpr (sweep == Sweep::online) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        out[r / 2].v[n][even] *= decay;
        out[r / 2].v[n][odd] *= decay;
      }
    }
  }

  __device__ void clipped_probabilities(Strip<keys>& s, int r) const {
#pragma unroll
    for (int n = 0; n < keys / 8; ++n)
#pragma unroll
      for (int e = r % 2 * 2; e < r % 2 * 2 + 2; ++e)
        s.v[n][e] = clipped(p.problem, fast_exp2(s.v[n][e] * p.problem.factor - top[r]));
  }

  /// `top` becomes the base-2 logarithm of the row's sum, and `sum` the sum.
  __device__ void finish_sums() {
#pragma unroll
    for (int r = 0; r < own; ++r) {
      sum[r] = row_sum(sum[r]);
      top[r] += log2f(sum[r]);
    }
  }

  /// Scales rows by `factor`, applies the gate, writes.
  __device__ void write(const float (&factors)[own]) {
    const AttentionProblem& a = p.problem;
#pragma unroll
    for (int r = 0; r < own; ++r) {
      const bool inside = row(r) < a.tokens;
      const int64_t at = first_token() + row(r);
      float factor = factors[r];
      if (inside && a.gate_kind == GateKind::headwise) factor *= gate_of(a, p.gate, at, head, 0);
      if (inside && lane % 4 == 0)
        p.lse[(static_cast<int64_t>(sequence) * a.heads + head) * a.tokens + row(r)] = top[r] * ln2;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = n * 8 + lane % 4 * 2 + e;
          float& v = out[r / 2].v[n][r % 2 * 2 + e];
          v *= factor;
          if (a.gate_kind == GateKind::elementwise && inside && d < a.head_size)
            v *= gate_of(a, p.gate, at, head, d);
        }
    }
#pragma unroll
    for (int i = 0; i < strips; ++i) {
      const int first = warp_row() + i * strip_rows;
      write_strip(out[i], p.o, first_token() + first, a.tokens - first,
                  static_cast<int64_t>(head) * a.head_size, a.head_size);
    }
  }
};

template <class T, int D, Softmax softmax>
__global__ void __launch_bounds__(attention_threads) forward_kernel(ForwardParams<T> p) {
  ForwardBlock<T, D> block{p, block_shared<ForwardShared<T, D>>()};
  block.sequence = static_cast<int>(blockIdx.z);
  block.head = static_cast<int>(blockIdx.y);
  block.kv_head = block.head / (p.problem.heads / p.problem.kv_heads);
  block.first_row =
      static_cast<int>(gridDim.x - 1 - blockIdx.x) * block_queries<T, D>;  // the longest rows first
  block.warp = static_cast<int>(threadIdx.x) / warp_size;
  block.lane = static_cast<int>(threadIdx.x) % warp_size;
  block.prepare();
  float factors[ForwardBlock<T, D>::own];
  if constexpr (softmax == Softmax::clipped) {
    block.template run<Sweep::measure>();
    block.finish_sums();
    block.template run<Sweep::clip>();
    for (float& f : factors) f = 1.0f;
  } else {
    block.template run<Sweep::online>();
    block.finish_sums();
#pragma unroll
    for (int r = 0; r < ForwardBlock<T, D>::own; ++r) factors[r] = 1.0f / block.sum[r];
  }
  block.write(factors);
}

template <class T>
void forward(const Queue& queue, const kernels::AttentionForward& a, const AttentionProblem& problem) {
  const ForwardParams<T> p{.problem = problem,
                           .q = rows_in<T>(a.q),
                           .k = rows_in<T>(a.k),
                           .v = rows_in<T>(a.v),
                           .gate = rows_in<T>(a.gate),
                           .o = rows_out<T>(a.o),
                           .lse = a.lse.as<float>()};
  with_head_bound(a.head_size, [&](auto bound) {
    constexpr int D = decltype(bound)::value;
    constexpr int rows = block_queries<T, D>;
    const dim3 blocks(static_cast<unsigned>((problem.tokens + rows - 1) / rows),
                      static_cast<unsigned>(problem.heads), static_cast<unsigned>(a.batch));
    const Grid grid{blocks, dim3(attention_threads), sizeof(ForwardShared<T, D>)};
    if (a.clip)
      launch("attention", queue, grid, forward_kernel<T, D, Softmax::clipped>, p);
    else
      launch("attention", queue, grid, forward_kernel<T, D, Softmax::plain>, p);
  });
}

}  // namespace

void attention_forward(const Queue& queue, const kernels::AttentionForward& a) {
  if (stream_of(queue).cudnn().forward(a)) return;
  AttentionProblem problem = attention_problem(a, a.q.rows() / a.batch, a.k.cols());
  problem.document_start = a.document_start.defined() ? a.document_start.as<int32_t>() : nullptr;
  if (problem.tokens == 0) return;
  if (a.q.dtype == DType::bf16)
    forward<bf16>(queue, a, problem);
  else
    forward<float>(queue, a, problem);
}

}  // namespace osprey::cuda
