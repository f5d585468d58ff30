// Decoding reads the cache once and is bound by memory. The cache is cut into chunks of 256 keys, whatever
// the GPU, and a block takes one chunk for up to four heads that share it: scores into shared memory, then
// values. A second pass puts the chunks of a row together. Under a clip a first pass over the keys alone
// measures the rows' sums.
//
// What to expect, not measured: three quarters of the memory's bandwidth for long caches and up to four heads
// a kv head (with more, groups of four read the same chunk through the second-level cache); the cost of two
// or three launches for short ones.
#include "kernels/cuda/attention_tile.h"

namespace osprey::cuda {

namespace {

enum class Sweep {
  online,   // values weighted within the chunk, to be scaled when chunks are put together
  measure,  // maximum and sum of each chunk only: first sweep of the clipped softmax
  clip,     // values weighted by final probabilities: second sweep
};

constexpr int chunk_keys = 256;
constexpr int decode_threads = 128;
constexpr const char* op_name = "attention decode";

template <class T>
struct DecodeParams {
  AttentionProblem problem;  // tokens is the cache's capacity
  Rows<const T> q, gate, new_k, new_v;
  Rows<T> k_cache, v_cache, o;
  const int32_t* lengths;
  int chunks, clipped;
  float2* stats = nullptr;  // (sequences of the launch, H, chunks): maximum, base 2, and sum of exponentials
  float* sums = nullptr;    // the same times D: weighted values
};

/// Keys in the cache of a sequence, or 0 when its length makes no sense.
template <class T>
__device__ inline int length_of(const DecodeParams<T>& p, int sequence) {
  const int length = p.lengths[sequence];
  return length < 1 || length > p.problem.tokens ? 0 : length;
}

/// Keys that the new token sees, from `first` on; chunks are counted from there.
struct Visible {
  int first, keys;
  __device__ int chunks() const { return (keys + chunk_keys - 1) / chunk_keys; }
};
template <class T>
__device__ inline Visible visible_of(const DecodeParams<T>& p, int sequence) {
  const int length = length_of(p, sequence);
  const int first = length == 0 ? 0 : static_cast<int>(first_visible_key(length - 1, 0, p.problem.window));
  return {first, length - first};
}

/// One block a sequence.
template <class T>
__global__ void __launch_bounds__(decode_threads) append_kernel(DecodeParams<T> p) {
  const int sequence = p.problem.first_sequence + static_cast<int>(blockIdx.x), keys = length_of(p, sequence);
  if (keys == 0) return;
  const int64_t row = static_cast<int64_t>(sequence) * p.problem.tokens + keys - 1;
  const int cols = p.problem.kv_heads * p.problem.head_size;
  for (int c = static_cast<int>(threadIdx.x); c < cols; c += decode_threads) {
    p.k_cache.data[row * p.k_cache.stride + c] = p.new_k.data[sequence * p.new_k.stride + c];
    p.v_cache.data[row * p.v_cache.stride + c] = p.new_v.data[sequence * p.new_v.stride + c];
  }
}

/// Maximum and sum of a whole row from those of its chunks, the same bits in all lanes of a warp.
struct RowSum {
  float top, sum;
};
__device__ inline RowSum row_sum_of_chunks(const float2* stats, int chunks, float sink) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  float top = sink;
  for (int c = lane; c < chunks; c += warp_size) top = fmaxf(top, stats[c].x);
  top = warp_max(top);
  const float shift = top == -INFINITY ? 0.0f : top;
  float sum = lane == 0 ? fast_exp2(sink - shift) : 0.0f;
  for (int c = lane; c < chunks; c += warp_size) sum += stats[c].y * fast_exp2(stats[c].x - shift);
  return {shift, warp_sum(sum)};
}

template <int Heads>
struct ChunkShared {
  float weights[Heads][chunk_keys];
  float parts[Heads * 8][decode_threads];
};

template <class T, int Heads, Sweep sweep>
struct Chunk {
  const DecodeParams<T>& p;
  ChunkShared<Heads>& shared;
  int sequence, local, first_head, chunk;
  int first_key;                 // of this chunk
  int keys, chunks;              // keys of this chunk, chunks of this sequence
  int lanes, team, lane, teams;  // `lanes` lanes, a team, hold 8 elements each of a row

  __device__ int64_t slot(int head) const {
    return (static_cast<int64_t>(local) * p.problem.heads + first_head + head) * p.chunks + chunk;
  }
  __device__ bool holds() const { return lane * 8 < p.problem.head_size; }
  __device__ const T* row(const Rows<T>& cache, int key) const {
    const AttentionProblem& a = p.problem;
    const int kv_head = first_head / (a.heads / a.kv_heads);
    return cache.data + (static_cast<int64_t>(sequence) * a.tokens + first_key + key) * cache.stride +
           static_cast<int64_t>(kv_head) * a.head_size + lane * 8;
  }

  /// Scores in base 2.
  __device__ void scores() {
    const AttentionProblem& a = p.problem;
    float q[Heads][8] = {};
    if (holds())
      for (int h = 0; h < Heads; ++h)
        load_8(
            q[h],
            p.q.data + sequence * p.q.stride + static_cast<int64_t>(first_head + h) * a.head_size + lane * 8,
            p.q.vectors);
#pragma unroll 4
    for (int first = 0; first < keys; first += teams) {  // the same number of times in all lanes
      const int key = first + team;
      float x[8] = {};
      if (holds() && key < keys) load_8(x, row(p.k_cache, key), p.k_cache.vectors);
      for (int h = 0; h < Heads; ++h) {
        float dot = 0.0f;
        for (int e = 0; e < 8; ++e) dot += q[h][e] * x[e];
        for (int far = lanes / 2; far > 0; far /= 2) dot += __shfl_xor_sync(full_warp, dot, far);
        if (lane == 0 && key < keys) shared.weights[h][key] = dot * a.factor;
      }
    }
    __syncthreads();
  }

  /// Scores become weights; warp h sees to head h.
  __device__ void weigh() {
    const int h = static_cast<int>(threadIdx.x) / warp_size, at = static_cast<int>(threadIdx.x) % warp_size;
    if (h < Heads) {
      float* weights = shared.weights[h];
      if constexpr (sweep == Sweep::clip) {
        const RowSum whole =
            row_sum_of_chunks(p.stats + slot(h) - chunk, chunks, sink_logit(p.problem, first_head + h));
        const float log_sum = whole.top + log2f(whole.sum);
        for (int k = at; k < keys; k += warp_size)
          weights[k] = clipped(p.problem, fast_exp2(weights[k] - log_sum));
      } else {
        float top = -INFINITY, sum = 0.0f;
        for (int k = at; k < keys; k += warp_size) top = fmaxf(top, weights[k]);
        top = warp_max(top);
        const float shift = top == -INFINITY ? 0.0f : top;
        for (int k = at; k < keys; k += warp_size) sum += weights[k] = fast_exp2(weights[k] - shift);
        sum = warp_sum(sum);
        if (at == 0) p.stats[slot(h)] = make_float2(top, sum);
      }
    }
    __syncthreads();
  }

  __device__ void values() {
    const AttentionProblem& a = p.problem;
    float sum[Heads][8] = {};
#pragma unroll 4
    for (int key = team; key < keys; key += teams) {
      float x[8] = {};
      if (holds()) load_8(x, row(p.v_cache, key), p.v_cache.vectors);
      for (int h = 0; h < Heads; ++h)
        for (int e = 0; e < 8; ++e) sum[h][e] += shared.weights[h][key] * x[e];
    }
    for (int h = 0; h < Heads; ++h)
      for (int e = 0; e < 8; ++e) shared.parts[h * 8 + e][threadIdx.x] = sum[h][e];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < Heads * a.head_size; i += decode_threads) {
      const int h = i / a.head_size, d = i % a.head_size;
      float total = 0.0f;
      for (int t = 0; t < teams; ++t) total += shared.parts[h * 8 + d % 8][t * lanes + d / 8];
      p.sums[slot(h) * a.head_size + d] = total;
    }
  }
};

/// Grid: (groups of heads, chunks, sequences).
template <class T, int Heads, Sweep sweep>
__global__ void __launch_bounds__(decode_threads) chunk_kernel(DecodeParams<T> p, int lanes) {
  const int thread = static_cast<int>(threadIdx.x);
  Chunk<T, Heads, sweep> c{p, block_shared<ChunkShared<Heads>>()};
  c.local = static_cast<int>(blockIdx.z);
  c.sequence = p.problem.first_sequence + c.local;
  c.first_head = static_cast<int>(blockIdx.x) * Heads;
  c.chunk = static_cast<int>(blockIdx.y);
  const Visible visible = visible_of(p, c.sequence);
  const int left = visible.keys - c.chunk * chunk_keys;
  if (left <= 0) return;
  c.keys = left < chunk_keys ? left : chunk_keys;
  c.first_key = visible.first + c.chunk * chunk_keys;
  c.chunks = visible.chunks();
  c.lanes = lanes;
  c.team = thread / lanes;
  c.lane = thread % lanes;
  c.teams = decode_threads / lanes;
  c.scores();
  c.weigh();
  if constexpr (sweep != Sweep::measure) c.values();
}

/// Grid: (heads, sequences). Puts chunks together, gates, writes. A sequence whose length makes no sense
/// becomes NaN.
template <class T>
__global__ void __launch_bounds__(decode_threads) combine_kernel(DecodeParams<T> p) {
  const AttentionProblem& a = p.problem;
  const int head = static_cast<int>(blockIdx.x), local = static_cast<int>(blockIdx.y),
            sequence = a.first_sequence + local;
  const Visible visible = visible_of(p, sequence);
  const int chunks = visible.chunks();
  const int64_t slot = (static_cast<int64_t>(local) * a.heads + head) * p.chunks;
  const RowSum whole = row_sum_of_chunks(p.stats + slot, chunks, sink_logit(a, head));
  for (int d = static_cast<int>(threadIdx.x); d < a.head_size; d += decode_threads) {
    float sum = visible.keys == 0 ? NAN : 0.0f;
    for (int c = 0; c < chunks; ++c) {
      const float part = p.sums[(slot + c) * a.head_size + d];
      sum += p.clipped ? part : part * fast_exp2(p.stats[slot + c].x - whole.top);
    }
    if (!p.clipped) sum /= whole.sum;
    if (a.gate_kind != GateKind::none) sum *= gate_of(a, p.gate, sequence, head, d);
    p.o.data[sequence * p.o.stride + static_cast<int64_t>(head) * a.head_size + d] = Convert<T>::from(sum);
  }
}

template <class T, int Heads>
void launch_chunks(const Queue& queue, const DecodeParams<T>& p, int64_t sequences) {
  int lanes = 1;
  while (lanes * 8 < p.problem.head_size) lanes *= 2;
  const Grid grid{dim3(static_cast<unsigned>(p.problem.heads / Heads), static_cast<unsigned>(p.chunks),
                       static_cast<unsigned>(sequences)),
                  dim3(decode_threads), sizeof(ChunkShared<Heads>)};
  if (p.clipped) {
    launch(op_name, queue, grid, chunk_kernel<T, Heads, Sweep::measure>, p, lanes);
    launch(op_name, queue, grid, chunk_kernel<T, Heads, Sweep::clip>, p, lanes);
  } else {
    launch(op_name, queue, grid, chunk_kernel<T, Heads, Sweep::online>, p, lanes);
  }
}

template <class T>
void decode(const Queue& queue, const kernels::AttentionDecode& a, const AttentionProblem& problem) {
  const int64_t most_keys = a.window > 0 ? std::min<int64_t>(a.window, problem.tokens) : problem.tokens;
  DecodeParams<T> p{.problem = problem,
                    .q = rows_in<T>(a.q),
                    .gate = rows_in<T>(a.gate),
                    .new_k = rows_in<T>(a.k),
                    .new_v = rows_in<T>(a.v),
                    .k_cache = rows_out<T>(a.k_cache),
                    .v_cache = rows_out<T>(a.v_cache),
                    .o = rows_out<T>(a.o),
                    .lengths = a.lengths.as<int32_t>(),
                    .chunks = static_cast<int>((most_keys + chunk_keys - 1) / chunk_keys),
                    .clipped = a.clip ? 1 : 0};
  // Partial results wait in scratch, for as many sequences at a time as fit.
  const int64_t batch = a.q.rows(), slots = static_cast<int64_t>(problem.heads) * p.chunks;
  const int64_t bytes = slots * (static_cast<int64_t>(sizeof(float2)) + 4 * problem.head_size);
  require(bytes <= Stream::scratch_bytes, op_name,
          "a cache of {} tokens for {} heads of {} needs {} bytes of scratch, and there are {}",
          problem.tokens, problem.heads, problem.head_size, bytes, Stream::scratch_bytes);
  const int64_t most = std::min(Stream::scratch_bytes / bytes, batch);
  p.stats = static_cast<float2*>(stream_of(queue).scratch(most * bytes));
  p.sums = reinterpret_cast<float*>(p.stats + most * slots);
  for (int64_t first = 0; first < batch; first += most) {
    const int64_t sequences = std::min(most, batch - first);
    p.problem.first_sequence = static_cast<int>(first);
    const unsigned rows = static_cast<unsigned>(sequences);
    if (a.k.defined()) launch(op_name, queue, {dim3(rows), dim3(decode_threads), 0}, append_kernel<T>, p);
    if (problem.heads / problem.kv_heads % 4 == 0)
      launch_chunks<T, 4>(queue, p, sequences);
    else
      launch_chunks<T, 1>(queue, p, sequences);
    launch(op_name, queue, {dim3(static_cast<unsigned>(problem.heads), rows), dim3(decode_threads), 0},
           combine_kernel<T>, p);
  }
}

}  // namespace

void attention_decode(const Queue& queue, const kernels::AttentionDecode& a) {
  const AttentionProblem problem = attention_problem(a, a.k_cache.shape[1], a.k_cache.cols());
  if (a.q.rows() == 0) return;
  if (a.q.dtype == DType::bf16)
    decode<bf16>(queue, a, problem);
  else
    decode<float>(queue, a, problem);
}

}  // namespace osprey::cuda
