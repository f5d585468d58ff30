// As in FlashAttention-2, scores are computed again from q, k and the saved logarithms of the rows' sums.
// Sums have one owner each and one order, so no atomics: one kernel owns key tiles (dk and dv, over the
// queries that see them and over the heads of the group), another query tiles (dq). That computes scores and
// dP twice, seven tile products instead of five, and buys equal bits on every run. Before them a pass over
// rows makes sum(dy * o) and the gate's gradient; under a clip the row term needs a sweep of its own, two
// products more.
//
// A gate makes the gradient of the ungated output from dy. It is written once, to where dq will be, when dq
// is to be overwritten anyway: the kernel that owns a query tile reads that tile before it writes it.
// Otherwise tiles are gated whenever they are read.
//
// What to expect of bf16, not measured: at 128 columns shared memory limits the key kernel to about two
// fifths of the rate of an H100's tensor cores (scores and dP come from strips of 16 keys and tiles of 32
// queries, since dk and dv fill the registers); the query kernel, with 32 rows a warp, is limited by
// mma.sync. A quarter of peak for the pair, counting five products. 256 columns are two blocks of 128 columns
// that both compute the scores. f32 is for checking, not for speed. Shared memory of a block, the larger of
// the two kernels: in bf16 57, 105 and 136 KB at 64, 128 and 256 columns, in f32 80, 146 and 206 KB. An A100
// has 166 KB, an H100 232 KB, an L40 101 KB.
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/cudnn.h"

namespace osprey::cuda {

namespace {

enum class Softmax { plain, clipped };

template <class T>
struct BackwardParams {
  AttentionProblem problem;
  Rows<const T> q, k, v, dy, gate;
  Rows<T> dq, dk, dv;
  const float* lse;
  float* row_term;  // (sequences of the launch, H, T): sum(dO * O), or its like under a clip
};

// ---- one pass over rows ----

template <class T>
struct PrepareParams {
  AttentionProblem problem;
  int64_t pairs;  // rows of the launch times heads
  int64_t lanes;  // that share a row of a head, 8 elements each: a power of two
  Rows<const T> dy, o, gate;
  Rows<T> dgate, ungated;  // null data: not wanted
  float* row_term;         // or null
};

constexpr int prepare_threads = 256;

template <class T>
__device__ inline void store_8(const Rows<T>& m, int64_t row, int64_t column, const float (&x)[8]) {
  for (int e = 0; e < 8; e += 2) write_pair(m, row, column + e, x[e], x[e + 1]);
}

/// Row terms, the gate's gradient (dlogit = dy * o * (1 - gate), since o = gate * ungated), the ungated
/// gradient.
template <class T>
__global__ void __launch_bounds__(prepare_threads) prepare_kernel(PrepareParams<T> p) {
  const AttentionProblem& a = p.problem;
  const int lanes = static_cast<int>(p.lanes), lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t pair = (static_cast<int64_t>(blockIdx.x) * prepare_threads + threadIdx.x) / lanes;
  const int head = static_cast<int>(pair % a.heads);
  const int64_t local = pair / a.heads, row = static_cast<int64_t>(a.first_sequence) * a.tokens + local;
  const int64_t column = static_cast<int64_t>(head) * a.head_size + lane * 8;
  const bool inside = pair < p.pairs && lane * 8 < a.head_size;
  float dy[8] = {}, y[8] = {}, product[8], sum = 0.0f;
  if (inside) {
    load_8(dy, p.dy.data + row * p.dy.stride + column, p.dy.vectors);
    load_8(y, p.o.data + row * p.o.stride + column, p.o.vectors);
  }
  for (int e = 0; e < 8; ++e) sum += product[e] = dy[e] * y[e];
  for (int far = lanes / 2; far > 0; far /= 2) sum += __shfl_xor_sync(full_warp, sum, far);
  if (!inside) return;
  if (p.row_term && lane == 0)
    p.row_term[(local / a.tokens * a.heads + head) * a.tokens + local % a.tokens] = sum;
  if (a.gate_kind == GateKind::none) return;
  float open[8];
  for (int e = 0; e < 8; ++e)
    open[e] =
        a.gate_kind == GateKind::headwise && e > 0 ? open[0] : gate_of(a, p.gate, row, head, lane * 8 + e);
  if (p.dgate.data && a.gate_kind == GateKind::elementwise) {
    for (int e = 0; e < 8; ++e) product[e] *= 1.0f - open[e];
    store_8(p.dgate, row, column, product);
  } else if (p.dgate.data && lane == 0) {
    T* to = p.dgate.data + row * p.dgate.stride + head;
    *to = Convert<T>::from((p.dgate.add ? to_float(*to) : 0.0f) + sum * (1.0f - open[0]));
  }
  if (!p.ungated.data) return;
  for (int e = 0; e < 8; ++e) dy[e] *= open[e];
  store_8(p.ungated, row, column, dy);
}

// ---- the sink ----

struct SinkParams {
  AttentionProblem problem;
  int sequences, add;
  const float *lse, *row_term;
  float* dsink;
};

struct SinkShared {
  double room[prepare_threads / warp_size];
};

/// One block a head: minus the sum over rows of the sink's probability times the row term.
__global__ void __launch_bounds__(prepare_threads) sink_kernel(SinkParams p) {
  const AttentionProblem& a = p.problem;
  const int head = static_cast<int>(blockIdx.x);
  const float sink = sink_logit(a, head);
  double total = 0;
  for (int64_t s = 0; s < p.sequences; ++s) {
    const float* lse = p.lse + ((a.first_sequence + s) * a.heads + head) * a.tokens;
    const float* term = p.row_term + (s * a.heads + head) * a.tokens;
    for (int t = static_cast<int>(threadIdx.x); t < a.tokens; t += prepare_threads)
      total += static_cast<double>(fast_exp2(sink - lse[t] * log2e) * term[t]);
  }
  total = block_sum(total, block_shared<SinkShared>().room);
  if (threadIdx.x == 0)
    p.dsink[head] = static_cast<float>((p.add ? static_cast<double>(p.dsink[head]) : 0.0) - total);
}

// ---- tiles ----

/// A tile of the gradient of the ungated output.
template <class T, int RowCount, int D>
__device__ inline void load_gradient(Tile<T, RowCount, D>& tile, const BackwardParams<T>& p, int64_t row,
                                     int valid, int head) {
  const AttentionProblem& a = p.problem;
  if (a.gate_kind == GateKind::none)
    load_tile(tile, p.dy, row, valid, static_cast<int64_t>(head) * a.head_size, a.head_size);
  else
    load_gated_tile(tile, a, p.dy, p.gate, row, valid, head);
}

/// The base-2 logarithm of a row's sum. Rows that do not exist have probability 0 everywhere.
template <class T>
__device__ inline float log_sum_of(const BackwardParams<T>& p, int sequence, int head, int t) {
  const AttentionProblem& a = p.problem;
  if (t >= a.tokens) return 1e30f;
  return p.lse[(static_cast<int64_t>(sequence) * a.heads + head) * a.tokens + t] * log2e;
}
template <class T>
__device__ inline float* row_term_of(const BackwardParams<T>& p, int sequence, int head, int t) {
  const AttentionProblem& a = p.problem;
  return p.row_term + (static_cast<int64_t>(sequence - a.first_sequence) * a.heads + head) * a.tokens + t;
}

/// The gradient of a score before the scale, from its probability.
template <Softmax softmax>
__device__ inline float score_gradient(const AttentionProblem& a, float probability, float dp, float term) {
  if constexpr (softmax == Softmax::clipped) {
    const float slope = clip_slope(a, probability);
    return probability * ((slope > 0.0f ? dp * slope : 0.0f) - term);
  }
  return probability * (dp - term);
}

// ---- dk and dv: a block owns some keys ----

/// Of a warp.
template <class T, int D>
inline constexpr int key_strips = sizeof(T) == 2 && D <= 64 ? 2 : 1;
template <class T, int D>
inline constexpr int block_keys = key_strips<T, D>* attention_warps* strip_rows;
template <class T, int D>
inline constexpr int tile_queries = sizeof(T) == 4 && D > 128 ? 16 : 32;
/// Columns of dk and dv that a block owns.
template <int D>
inline constexpr int owned_columns = D > 128 ? 128 : D;

template <class T, int D>
struct KeyShared {
  static constexpr int queries = tile_queries<T, D>;
  Tile<T, block_keys<T, D>, D> k, v;
  Tile<T, queries, D> q[2], dy[2];
  Patch<T, queries> patch[attention_warps];
  float log_sum[2][queries], term[2][queries];
  int start[2][queries];
  int last_query[attention_warps];
};

template <class T, int D, Softmax softmax>
struct KeyBlock {
  static constexpr int queries = tile_queries<T, D>, columns = owned_columns<D>;
  static constexpr int strips = key_strips<T, D>, warp_keys = strips * strip_rows;
  const BackwardParams<T>& p;
  KeyShared<T, D>& shared;
  int sequence, kv_head, first_key_row, column;
  int warp, lane;
  int first_row, end_row;  // of the queries that see any of these keys
  Strip<columns> dk[strips], dv[strips];

  __device__ int group() const { return p.problem.heads / p.problem.kv_heads; }
  __device__ int64_t first_token() const { return static_cast<int64_t>(sequence) * p.problem.tokens; }
  __device__ int warp_key() const { return first_key_row + warp * warp_keys; }

  __device__ void prepare() {
    const AttentionProblem& a = p.problem;
    const int64_t row = first_token() + first_key_row, at = static_cast<int64_t>(kv_head) * a.head_size;
    load_tile(shared.k, p.k, row, a.tokens - first_key_row, at, a.head_size);
    load_tile(shared.v, p.v, row, a.tokens - first_key_row, at, a.head_size);
    const int last = a.hides_early_keys() ? last_query() : a.tokens - 1;
    first_row = first_key_row / queries * queries;
    end_row = last + 1;
#pragma unroll
    for (int i = 0; i < strips; ++i) {
      dk[i].clear();
      dv[i].clear();
    }
  }

  /// The last row that sees any of the keys; their own rows do.
  __device__ int last_query() {
    const AttentionProblem& a = p.problem;
    int last = first_key_row;
    for (int t = first_key_row + static_cast<int>(threadIdx.x); t < a.tokens; t += attention_threads)
      if (first_key(a, sequence, t) < first_key_row + block_keys<T, D>) last = t;
    last = warp_max(last);
    if (lane == 0) shared.last_query[warp] = last;
    __syncthreads();
    for (int w = 0; w < attention_warps; ++w)
      last = shared.last_query[w] > last ? shared.last_query[w] : last;
    return last;
  }

  /// A query tile of one head of the group.
  struct Step {
    int head, first;
  };
  __device__ Step next(Step at) const {
    at.first += queries;
    return at.first < end_row ? at : Step{at.head + 1, first_row};
  }

  __device__ void load_queries(Step at, int stage) {
    const AttentionProblem& a = p.problem;
    const int64_t row = first_token() + at.first;
    load_tile(shared.q[stage], p.q, row, a.tokens - at.first, static_cast<int64_t>(at.head) * a.head_size,
              a.head_size);
    load_gradient(shared.dy[stage], p, row, a.tokens - at.first, at.head);
    copy_async_commit();
    if (static_cast<int>(threadIdx.x) < queries) {
      const int r = static_cast<int>(threadIdx.x), t = at.first + r;
      shared.log_sum[stage][r] = log_sum_of(p, sequence, at.head, t);
      shared.term[stage][r] = t < a.tokens ? *row_term_of(p, sequence, at.head, t) : 0.0f;
      shared.start[stage][r] = first_key(a, sequence, t);
    }
  }

  __device__ void run() {
    const int end_head = (kv_head + 1) * group();
    Step at{kv_head * group(), first_row};
    load_queries(at, 0);
    for (int stage = 0; at.head < end_head; stage = 1 - stage) {
      copy_async_wait<0>();
      __syncthreads();
      const Step after = next(at);
      if (after.head < end_head) load_queries(after, 1 - stage);
      if (at.first + queries > warp_key() && warp_key() < p.problem.tokens) take(stage, at.first);
      at = after;
    }
  }

  /// Scores are computed transposed, keys by queries: so they are left operands of dv and dk as they stand.
  __device__ void take(int stage, int first) {
    const AttentionProblem& a = p.problem;
    const bool masked = first < warp_key() + warp_keys || a.hides_early_keys();
    Strip<queries> s[strips], dp[strips];
    multiply_transposed(s, shared.k.row(warp * warp_keys), shared.q[stage]);
    multiply_transposed(dp, shared.v.row(warp * warp_keys), shared.dy[stage]);
#pragma unroll
    for (int n = 0; n < queries / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = n * 8 + lane % 4 * 2 + half, start = shared.start[stage][c];
        const float log_sum = shared.log_sum[stage][c], term = shared.term[stage][c];
#pragma unroll
        for (int r = 0; r < 2 * strips; ++r) {
          const int key = warp_key() + r / 2 * strip_rows + r % 2 * 8 + lane / 4;
          float &score = s[r / 2].v[n][r % 2 * 2 + half], &gradient = dp[r / 2].v[n][r % 2 * 2 + half];
          float probability = fast_exp2(score * a.factor - log_sum);
          if (masked && (first + c < key || start > key)) probability = 0.0f;
          gradient = score_gradient<softmax>(a, probability, gradient, term) * a.scale;
          score = softmax == Softmax::clipped ? clipped(a, probability) : probability;
        }
      }
    multiply_add(dv, s, shared.dy[stage], column, shared.patch[warp]);
    multiply_add(dk, dp, shared.q[stage], column, shared.patch[warp]);
  }

  __device__ void write() {
    const AttentionProblem& a = p.problem;
    const int64_t at = static_cast<int64_t>(kv_head) * a.head_size + column;
#pragma unroll
    for (int i = 0; i < strips; ++i) {
      const int first = warp_key() + i * strip_rows;
      if (p.dk.data)
        write_strip(dk[i], p.dk, first_token() + first, a.tokens - first, at, a.head_size - column);
      if (p.dv.data)
        write_strip(dv[i], p.dv, first_token() + first, a.tokens - first, at, a.head_size - column);
    }
  }
};

template <class T, int D, Softmax softmax>
__global__ void __launch_bounds__(attention_threads) key_kernel(BackwardParams<T> p) {
  constexpr int parts = D / owned_columns<D>;
  KeyBlock<T, D, softmax> block{p, block_shared<KeyShared<T, D>>()};
  block.sequence = p.problem.first_sequence + static_cast<int>(blockIdx.z);
  block.kv_head = static_cast<int>(blockIdx.y);
  block.first_key_row =
      static_cast<int>(blockIdx.x / parts) * block_keys<T, D>;  // those that most rows see first
  block.column = static_cast<int>(blockIdx.x % parts) * owned_columns<D>;
  block.warp = static_cast<int>(threadIdx.x) / warp_size;
  block.lane = static_cast<int>(threadIdx.x) % warp_size;
  block.prepare();
  block.run();
  block.write();
}

// ---- dq, and row terms under a clip: a block owns some queries ----

enum class Result { dq, row_terms };

/// Of a warp.
template <class T, int D>
inline constexpr int query_strips = sizeof(T) == 2 && D <= 128 ? 2 : 1;
template <class T, int D>
inline constexpr int block_queries = query_strips<T, D>* attention_warps* strip_rows;
template <class T, int D>
inline constexpr int tile_keys = sizeof(T) == 4 && D > 128 ? 16 : 32;

template <class T, int D>
struct QueryShared {
  static constexpr int keys = tile_keys<T, D>;
  Tile<T, block_queries<T, D>, D> q, dy;
  Tile<T, keys, D> k[2], v[2];
  Patch<T, keys> patch[attention_warps];
  int start[block_queries<T, D>];
  int least_start[attention_warps];
};

template <class T, int D, Softmax softmax, Result result>
struct QueryBlock {
  static constexpr int keys = tile_keys<T, D>, strips = query_strips<T, D>, warp_rows = strips * strip_rows;
  static constexpr int own =
      2 * strips;  // rows that a thread holds parts of: of strip i its rows 2 i and 2 i + 1
  const BackwardParams<T>& p;
  QueryShared<T, D>& shared;
  int sequence, head, kv_head, first_row, first_tile, end_tile;
  int warp, lane;
  float log_sum[own], term[own];
  Strip<D> dq[strips];

  __device__ int64_t first_token() const { return static_cast<int64_t>(sequence) * p.problem.tokens; }
  __device__ int warp_row() const { return first_row + warp * warp_rows; }
  /// A thread's row r within the sequence.
  __device__ int row(int r) const { return warp_row() + r / 2 * strip_rows + r % 2 * 8 + lane / 4; }

  __device__ void prepare() {
    const AttentionProblem& a = p.problem;
    int least = a.tokens;
#pragma unroll
    for (int r = 0; r < own; ++r) {
      const int t = row(r);
      const int start = first_key(a, sequence, t);
      if (lane % 4 == 0) shared.start[t - first_row] = start;
      log_sum[r] = log_sum_of(p, sequence, head, t);
      term[r] = result == Result::dq && t < a.tokens ? *row_term_of(p, sequence, head, t) : 0.0f;
      if (t < a.tokens && start < least) least = start;
    }
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
    load_gradient(shared.dy, p, first_token() + first_row, a.tokens - first_row, head);
#pragma unroll
    for (int i = 0; i < strips; ++i) dq[i].clear();
  }

  __device__ void load_keys(int tile) {
    const AttentionProblem& a = p.problem;
    const int stage = (tile - first_tile) % 2, valid = a.tokens - tile * keys;
    const int64_t at = first_token() + tile * keys, column = static_cast<int64_t>(kv_head) * a.head_size;
    load_tile(shared.k[stage], p.k, at, valid, column, a.head_size);
    load_tile(shared.v[stage], p.v, at, valid, column, a.head_size);
    copy_async_commit();
  }

  __device__ void run() {
    load_keys(first_tile);
    for (int tile = first_tile; tile < end_tile; ++tile) {
      copy_async_wait<0>();
      __syncthreads();
      if (tile + 1 < end_tile) load_keys(tile + 1);
      if (tile * keys < warp_row() + warp_rows && warp_row() < p.problem.tokens)
        take((tile - first_tile) % 2, tile * keys);
    }
  }

  __device__ void take(int stage, int first) {
    const AttentionProblem& a = p.problem;
    const bool masked = first + keys - 1 > warp_row() || a.hides_early_keys();
    Strip<keys> s[strips], dp[strips];
    multiply_transposed(s, shared.q.row(warp * warp_rows), shared.k[stage]);
    multiply_transposed(dp, shared.dy.row(warp * warp_rows), shared.v[stage]);
#pragma unroll
    for (int r = 0; r < own; ++r)
#pragma unroll
      for (int n = 0; n < keys / 8; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int key = first + n * 8 + lane % 4 * 2 + half;
          float& score = s[r / 2].v[n][r % 2 * 2 + half];
          const float gradient = dp[r / 2].v[n][r % 2 * 2 + half];
          float probability = fast_exp2(score * a.factor - log_sum[r]);
          if (masked && (key > row(r) || key < shared.start[row(r) - first_row])) probability = 0.0f;
          if constexpr (result == Result::row_terms)
            term[r] += probability * clip_slope(a, probability) * gradient;
          else
            score = score_gradient<softmax>(a, probability, gradient, term[r]) * a.scale;
        }
    if constexpr (result == Result::dq) multiply_add(dq, s, shared.k[stage], 0, shared.patch[warp]);
  }

  __device__ void write() {
    const AttentionProblem& a = p.problem;
    if constexpr (result == Result::dq) {
#pragma unroll
      for (int i = 0; i < strips; ++i) {
        const int first = warp_row() + i * strip_rows;
        write_strip(dq[i], p.dq, first_token() + first, a.tokens - first,
                    static_cast<int64_t>(head) * a.head_size, a.head_size);
      }
    } else {
#pragma unroll
      for (int r = 0; r < own; ++r) {
        const float sum = row_sum(term[r]);
        if (lane % 4 == 0 && row(r) < a.tokens) *row_term_of(p, sequence, head, row(r)) = sum;
      }
    }
  }
};

template <class T, int D, Softmax softmax, Result result>
__global__ void __launch_bounds__(attention_threads) query_kernel(BackwardParams<T> p) {
  QueryBlock<T, D, softmax, result> block{p, block_shared<QueryShared<T, D>>()};
  block.sequence = p.problem.first_sequence + static_cast<int>(blockIdx.z);
  block.head = static_cast<int>(blockIdx.y);
  block.kv_head = block.head / (p.problem.heads / p.problem.kv_heads);
  block.first_row =
      static_cast<int>(gridDim.x - 1 - blockIdx.x) * block_queries<T, D>;  // the longest rows first
  block.warp = static_cast<int>(threadIdx.x) / warp_size;
  block.lane = static_cast<int>(threadIdx.x) % warp_size;
  block.prepare();
  block.run();
  block.write();
}

// ---- the host's side ----

constexpr const char* op_name = "attention backward";

template <class T, int D>
struct Launcher {
  const Queue& queue;
  const BackwardParams<T>& p;
  unsigned sequences;

  unsigned blocks_of(int rows) const { return static_cast<unsigned>((p.problem.tokens + rows - 1) / rows); }
  template <Softmax softmax, Result result>
  void queries() const {
    const dim3 blocks(blocks_of(block_queries<T, D>), static_cast<unsigned>(p.problem.heads), sequences);
    launch(op_name, queue, {blocks, dim3(attention_threads), sizeof(QueryShared<T, D>)},
           query_kernel<T, D, softmax, result>, p);
  }
  template <Softmax softmax>
  void gradients() const {
    constexpr unsigned parts = D / owned_columns<D>;
    const dim3 blocks(blocks_of(block_keys<T, D>) * parts, static_cast<unsigned>(p.problem.kv_heads),
                      sequences);
    if (p.dk.data || p.dv.data)
      launch(op_name, queue, {blocks, dim3(attention_threads), sizeof(KeyShared<T, D>)},
             key_kernel<T, D, softmax>, p);
    if (p.dq.data) queries<softmax, Result::dq>();
  }
};

template <class T>
void prepare(const Queue& queue, const kernels::AttentionBackward& a, const BackwardParams<T>& p,
             int64_t sequences, bool ungate) {
  PrepareParams<T> r{.problem = p.problem,
                     .pairs = sequences * p.problem.tokens * p.problem.heads,
                     .lanes = 1,
                     .dy = rows_in<T>(a.dy),
                     .o = rows_in<T>(a.o),
                     .gate = p.gate,
                     .dgate = rows_out<T>(a.dgate.tensor, a.dgate.add),
                     .ungated = ungate ? p.dq : Rows<T>{},
                     .row_term = a.clip ? nullptr : p.row_term};
  while (r.lanes * 8 < p.problem.head_size) r.lanes *= 2;
  const int64_t blocks = (r.pairs * r.lanes + prepare_threads - 1) / prepare_threads;
  launch(op_name, queue, {dim3(static_cast<unsigned>(blocks)), dim3(prepare_threads), 0}, prepare_kernel<T>,
         r);
}

/// All gradients of `sequences` sequences from problem.first_sequence on.
template <class T>
void backward(const Queue& queue, const kernels::AttentionBackward& a, const AttentionProblem& problem,
              int64_t sequences, float* row_term) {
  BackwardParams<T> p{.problem = problem,
                      .q = rows_in<T>(a.q),
                      .k = rows_in<T>(a.k),
                      .v = rows_in<T>(a.v),
                      .dy = rows_in<T>(a.dy),
                      .gate = rows_in<T>(a.gate),
                      .dq = rows_out<T>(a.dq.tensor, a.dq.add),
                      .dk = rows_out<T>(a.dk.tensor, a.dk.add),
                      .dv = rows_out<T>(a.dv.tensor, a.dv.add),
                      .lse = a.lse.as<float>(),
                      .row_term = row_term};
  const bool gated = problem.gate_kind != GateKind::none, ungate = gated && a.dq && !a.dq.add;
  if (gated || !a.clip) prepare(queue, a, p, sequences, ungate);
  if (ungate) {
    p.dy = rows_in<T>(a.dq.tensor);
    p.problem.gate_kind = GateKind::none;
  }
  with_head_bound(a.head_size, [&](auto bound) {
    const Launcher<T, decltype(bound)::value> launcher{queue, p, static_cast<unsigned>(sequences)};
    if (a.clip) launcher.template queries<Softmax::clipped, Result::row_terms>();
    if (a.dsink)
      launch(op_name, queue,
             {dim3(static_cast<unsigned>(problem.heads)), dim3(prepare_threads), sizeof(SinkShared)},
             sink_kernel,
             SinkParams{.problem = p.problem,
                        .sequences = static_cast<int>(sequences),
                        .add = a.dsink.add || problem.first_sequence > 0 ? 1 : 0,
                        .lse = p.lse,
                        .row_term = row_term,
                        .dsink = a.dsink.tensor.as<float>()});
    if (a.clip)
      launcher.template gradients<Softmax::clipped>();
    else
      launcher.template gradients<Softmax::plain>();
  });
}

}  // namespace

void attention_backward(const Queue& queue, const kernels::AttentionBackward& a) {
  Stream& stream = stream_of(queue);
  if (stream.cudnn().backward(a)) return;
  AttentionProblem problem = attention_problem(a, a.q.rows() / a.batch, a.k.cols());
  problem.document_start = a.document_start.defined() ? a.document_start.as<int32_t>() : nullptr;
  // Row terms wait in scratch, for as many sequences at a time as fit.
  const int64_t bytes = static_cast<int64_t>(problem.heads) * problem.tokens * 4;
  require(bytes <= Stream::scratch_bytes, op_name,
          "one sequence of {} tokens and {} heads needs {} bytes of scratch, and there are {}",
          problem.tokens, problem.heads, bytes, Stream::scratch_bytes);
  const int64_t most = bytes == 0 ? a.batch : std::min(Stream::scratch_bytes / bytes, a.batch);
  float* row_term = static_cast<float*>(stream.scratch(most * bytes));
  for (int64_t first = 0; first < a.batch; first += most) {
    const int64_t sequences = std::min(most, a.batch - first);
    problem.first_sequence = static_cast<int>(first);
    if (a.q.dtype == DType::bf16)
      backward<bf16>(queue, a, problem, sequences, row_term);
    else
      backward<float>(queue, a, problem, sequences, row_term);
  }
}

}  // namespace osprey::cuda
