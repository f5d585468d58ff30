// One block takes 64 queries of one head through the keys they see, as in FlashAttention-2: the query tile
// and a window of two key and value tiles lie in shared memory, the next tile travels while the present one
// is multiplied, running maximum, sum and output stay in registers. Tiles that no query of the block sees,
// above the diagonal or before its documents, are not read. A clip needs each row's sum before its first
// product with values, so keys are swept twice then, which is half again the arithmetic.
//
// What to expect of bf16, not measured: a warp multiplies only 16 rows with every fragment of keys and values
// that it reads, so shared memory (128 bytes a clock) allows at most about half of the rate of the tensor
// cores on an H100, and the exponentials take their share of what is left: a quarter to a third of peak for
// head sizes of 64 and 128 and long rows. Up to 128 columns two blocks share a multiprocessor, so that one
// multiplies while the other takes exponentials. 256 columns take smaller key tiles and reach less. f32 is
// for checking, not for speed. Head sizes above 128 in f32 need a GPU with more than 100 KB of shared memory
// for a block (A100, H100; not L40).
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

template <class T, int D>
inline constexpr int tile_keys = (sizeof(T) == 2 ? 64 : 32) / (D > 128 ? 2 : 1);

template <class T, int D>
struct ForwardShared {
  Tile<T, block_rows, D> q;
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

/// What a thread knows of its two rows, eight apart, of the block's queries.
struct QueryRows {
  int row[2];    // within the sequence
  int start[2];  // first visible key
  float top[2];  // running maximum, base 2; the logarithm of the sum once that is known
  float sum[2];  // this lane's part of the sum of exponentials
};

template <class T, int D>
struct ForwardBlock {
  static constexpr int keys = tile_keys<T, D>;
  const ForwardParams<T>& p;
  ForwardShared<T, D>& shared;
  int sequence, head, kv_head, first_row, first_tile, end_tile;
  int warp, lane;
  int latest_start;  // of the warp's rows
  QueryRows rows;
  Strip<D> out;

  __device__ int64_t first_token() const { return static_cast<int64_t>(sequence) * p.problem.tokens; }
  __device__ int warp_row() const { return first_row + warp * strip_rows; }

  __device__ void prepare() {
    const AttentionProblem& a = p.problem;
    const float sink = sink_logit(a, head);
    int least = a.tokens, most = 0;
    for (int i = 0; i < 2; ++i) {
      rows.row[i] = warp_row() + lane / 4 + 8 * i;
      rows.start[i] = first_key(a, sequence, rows.row[i]);
      rows.top[i] = sink;
      rows.sum[i] = a.has_sink() && lane % 4 == 0 ? 1.0f : 0.0f;
      if (rows.row[i] >= a.tokens) continue;
      least = rows.start[i] < least ? rows.start[i] : least;
      most = rows.start[i] > most ? rows.start[i] : most;
    }
    for (int far = warp_size / 2; far > 0; far /= 2) {
      const int other_least = __shfl_xor_sync(full_warp, least, far),
                other_most = __shfl_xor_sync(full_warp, most, far);
      least = other_least < least ? other_least : least;
      most = other_most > most ? other_most : most;
    }
    latest_start = most;
    if (lane == 0) shared.least_start[warp] = least;
    __syncthreads();
    for (int w = 0; w < attention_warps; ++w)
      least = shared.least_start[w] < least ? shared.least_start[w] : least;
    const int last_row = first_row + block_rows < a.tokens ? first_row + block_rows : a.tokens;
    first_tile = least / keys;
    end_tile = (last_row + keys - 1) / keys;
    load_tile(shared.q, p.q, first_token() + first_row, a.tokens - first_row,
              static_cast<int64_t>(head) * a.head_size, a.head_size);
  }

  template <Sweep sweep>
  __device__ void load_keys(int tile) {
    const AttentionProblem& a = p.problem;
    const int stage = (tile - first_tile) % 2, valid = a.tokens - tile * keys;
    const int64_t row = first_token() + tile * keys, column = static_cast<int64_t>(kv_head) * a.head_size;
    load_tile(shared.k[stage], p.k, row, valid, column, a.head_size);
    if constexpr (sweep != Sweep::measure) load_tile(shared.v[stage], p.v, row, valid, column, a.head_size);
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
      if (tile * keys < warp_row() + strip_rows) take<sweep>(tile);
    }
  }

  template <Sweep sweep>
  __device__ void take(int tile) {
    const int stage = (tile - first_tile) % 2, first = tile * keys;
    Strip<keys> s;
    multiply_transposed(s, shared.q.row(warp * strip_rows), shared.k[stage]);
    if (first + keys - 1 > warp_row() || latest_start > first) hide(s, first);
    if constexpr (sweep == Sweep::clip)
      clipped_probabilities(s);
    else
      online_probabilities<sweep>(s);
    if constexpr (sweep != Sweep::measure) multiply_add(out, s, shared.v[stage], 0, shared.patch[warp]);
  }

  /// Scores of keys that a row does not see become -infinity.
  __device__ void hide(Strip<keys>& s, int first) const {
#pragma unroll
    for (int n = 0; n < keys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = first + n * 8 + lane % 4 * 2 + e % 2;
        if (key > rows.row[e / 2] || key < rows.start[e / 2]) s.v[n][e] = -INFINITY;
      }
  }

  template <Sweep sweep>
  __device__ void online_probabilities(Strip<keys>& s) {
    const float factor = p.problem.factor;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < keys / 8; ++n) most = fmaxf(most, fmaxf(s.v[n][2 * i], s.v[n][2 * i + 1]));
      const float next = fmaxf(row_max(most) * factor, rows.top[i]);
      // While a row has seen nothing its maximum is -infinity; shifting by 0 keeps exponents defined.
      const float shift = next == -INFINITY ? 0.0f : next, decay = fast_exp2(rows.top[i] - shift);
      rows.top[i] = next;
      float sum = rows.sum[i] * decay;
#pragma unroll
      for (int n = 0; n < keys / 8; ++n) {
        const float even = fast_exp2(s.v[n][2 * i] * factor - shift);
        const float odd = fast_exp2(s.v[n][2 * i + 1] * factor - shift);
        sum += even + odd;
        s.v[n][2 * i] = even;
        s.v[n][2 * i + 1] = odd;
      }
      rows.sum[i] = sum;
      if constexpr (sweep == Sweep::online) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          out.v[n][2 * i] *= decay;
          out.v[n][2 * i + 1] *= decay;
        }
      }
    }
  }

  __device__ void clipped_probabilities(Strip<keys>& s) const {
#pragma unroll
    for (int n = 0; n < keys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s.v[n][e] = clipped(p.problem, fast_exp2(s.v[n][e] * p.problem.factor - rows.top[e / 2]));
  }

  /// `top` becomes the base-2 logarithm of the row's sum, and `sum` the sum.
  __device__ void finish_sums() {
    for (int i = 0; i < 2; ++i) {
      rows.sum[i] = row_sum(rows.sum[i]);
      rows.top[i] += log2f(rows.sum[i]);
    }
  }

  /// Divides by `divisor`, applies the gate, writes.
  __device__ void write(const float (&divisor)[2]) {
    const AttentionProblem& a = p.problem;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = rows.row[i] < a.tokens;
      const int64_t row = first_token() + rows.row[i];
      float factor = 1.0f / divisor[i];
      if (inside && a.gate_kind == GateKind::headwise) factor *= gate_of(a, p.gate, row, head, 0);
      if (inside && lane % 4 == 0)
        p.lse[(static_cast<int64_t>(sequence) * a.heads + head) * a.tokens + rows.row[i]] = rows.top[i] * ln2;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e) {
          const int d = n * 8 + lane % 4 * 2 + e % 2;
          out.v[n][e] *= factor;
          if (a.gate_kind == GateKind::elementwise && inside && d < a.head_size)
            out.v[n][e] *= gate_of(a, p.gate, row, head, d);
        }
    }
    write_strip(out, p.o, first_token() + warp_row(), a.tokens - warp_row(),
                static_cast<int64_t>(head) * a.head_size, a.head_size);
  }
};

template <class T, int D, Softmax softmax>
__global__ void __launch_bounds__(attention_threads) forward_kernel(ForwardParams<T> p) {
  ForwardBlock<T, D> block{p, block_shared<ForwardShared<T, D>>()};
  block.sequence = static_cast<int>(blockIdx.z);
  block.head = static_cast<int>(blockIdx.y);
  block.kv_head = block.head / (p.problem.heads / p.problem.kv_heads);
  block.first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * block_rows;  // the longest rows first
  block.warp = static_cast<int>(threadIdx.x) / warp_size;
  block.lane = static_cast<int>(threadIdx.x) % warp_size;
  block.prepare();
  block.out.clear();
  if constexpr (softmax == Softmax::clipped) {
    block.template run<Sweep::measure>();
    block.finish_sums();
    block.template run<Sweep::clip>();
    block.write({1.0f, 1.0f});
  } else {
    block.template run<Sweep::online>();
    block.finish_sums();
    block.write(block.rows.sum);
  }
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
  const dim3 blocks(static_cast<unsigned>((problem.tokens + block_rows - 1) / block_rows),
                    static_cast<unsigned>(problem.heads), static_cast<unsigned>(a.batch));
  with_head_bound(a.head_size, [&](auto bound) {
    constexpr int D = decltype(bound)::value;
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
