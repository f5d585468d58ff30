#pragma once
// What the attention kernels for GPUs share: how a problem is described, tiles of rows in shared memory, and
// the two matrix products that all passes are made of.
//
// A block has four warps, and a warp owns a strip of 16 rows: of queries in the forward pass and for dq, of
// keys for dk and dv. Accumulators lie in the registers of mma_bf16_16x8x16, for f32 too, where plain
// multiply-adds fill them: so each pass is written once for both. Head sizes are padded with zeros to 64, 128
// or 256.

#include <cmath>

#include "kernels/attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/exp.h"
#include "kernels/numerics/first_key.h"

namespace osprey::cuda {

inline constexpr int attention_warps = 4;
inline constexpr int attention_threads = attention_warps * warp_size;
inline constexpr int strip_rows = 16;
inline constexpr float log2e = 1.44269504f;  // exponentials are taken in base 2
inline constexpr float ln2 = 0.693147181f;

// ---- the problem, as kernels see it ----

enum class GateKind : int { none, headwise, elementwise };

/// Rows of a matrix in global memory. `vectors`: every head's part of every row can be moved 16 bytes at a
/// time.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  int vectors = 0;  // every head's part of every row can be moved 16 bytes at a time
  int add = 0;      // of outputs: on top of what is there
};

struct AttentionProblem {
  int tokens, heads, kv_heads, head_size;
  int first_sequence;  // of this launch
  GateKind gate_kind;
  float scale, factor;  // of scores; times log2(e)
  float stretch, gamma;
  int64_t window;
  const int32_t* document_start;
  const float* sink_f32;  // (H); at most one of these two
  const bf16* sink_bf16;
  __host__ __device__ bool has_sink() const { return sink_f32 || sink_bf16; }
  /// Is there more to hide than later keys?
  __host__ __device__ bool hides_early_keys() const { return document_start || window > 0; }
};

template <class T>
Rows<const T> rows_in(const Tensor& t) {
  if (!t.defined()) return {};
  const T* data = static_cast<const T*>(t.data);
  return {data, t.row_stride(), vectorizable(data, t.row_stride(), vector_length<T>) ? 1 : 0};
}
template <class T>
Rows<T> rows_out(const Tensor& t, bool add = false) {
  const Rows<const T> r = rows_in<T>(t);
  return {const_cast<T*>(r.data), r.stride, r.vectors, add ? 1 : 0};
}

template <class Args>
AttentionProblem attention_problem(const Args& a, int64_t tokens, int64_t kv_cols) {
  AttentionProblem p{};
  p.tokens = static_cast<int>(tokens);
  p.head_size = static_cast<int>(a.head_size);
  p.heads = static_cast<int>(a.q.cols() / a.head_size);
  p.kv_heads = static_cast<int>(kv_cols / a.head_size);
  p.scale = a.scale.value_or(1.0f / std::sqrt(static_cast<float>(a.head_size)));
  p.factor = p.scale * log2e;
  p.window = a.window;
  if (a.clip) {
    p.stretch = a.clip->zeta - a.clip->gamma;
    p.gamma = a.clip->gamma;
  }
  if (a.sink.defined() && a.sink.dtype == DType::f32) p.sink_f32 = a.sink.template as<float>();
  if (a.sink.defined() && a.sink.dtype == DType::bf16) p.sink_bf16 = a.sink.template as<bf16>();
  if (a.gate.defined()) p.gate_kind = a.gate.cols() == p.heads ? GateKind::headwise : GateKind::elementwise;
  return p;
}

/// The sink's logit in base 2; -infinity when there is none.
__device__ inline float sink_logit(const AttentionProblem& p, int head) {
  if (p.sink_f32) return p.sink_f32[head] * log2e;
  return p.sink_bf16 ? to_float(p.sink_bf16[head]) * log2e : -INFINITY;
}

/// The first key that row `t` of a sequence sees; `t` is the last.
__device__ inline int first_key(const AttentionProblem& p, int sequence, int t) {
  if (t >= p.tokens) return 0;
  const int document = p.document_start ? p.document_start[static_cast<int64_t>(sequence) * p.tokens + t] : 0;
  return static_cast<int>(first_visible_key(t, document, p.window));
}

/// A clipped probability. NaN stays NaN.
__device__ inline float clipped(const AttentionProblem& p, float probability) {
  const float stretched = probability * p.stretch + p.gamma;
  const float low = stretched < 0.0f ? 0.0f : stretched;
  return low > 1.0f ? 1.0f : low;
}
/// Its derivative by the probability.
__device__ inline float clip_slope(const AttentionProblem& p, float probability) {
  const float stretched = probability * p.stretch + p.gamma;
  return stretched > 0.0f && stretched < 1.0f ? p.stretch : 0.0f;
}

/// Sigmoid of the gate's logit for a head's element `d` in a row.
template <class T>
__device__ inline float gate_of(const AttentionProblem& p, const Rows<const T>& gate, int64_t row, int head,
                                int d) {
  const int64_t column =
      p.gate_kind == GateKind::headwise ? head : static_cast<int64_t>(head) * p.head_size + d;
  return sigmoid(to_float(gate.data[row * gate.stride + column]));
}

// ---- tiles in shared memory ----

/// Rows of one head in shared memory. Rows are 16 bytes longer than their data, so that the eight rows of an
/// 8x8 matrix lie in different banks.
template <class T, int RowCount, int D>
struct alignas(16) Tile {
  static constexpr int pitch = D + vector_length<T>;
  T v[RowCount * pitch];
  __device__ T* row(int r) { return v + r * pitch; }
  __device__ const T* row(int r) const { return v + r * pitch; }
};

/// Starts copying `valid` rows from `row` on, head_size columns from `column` on; what is left of the tile
/// becomes zero. All threads of the block take part. Complete after copy_async_wait() and __syncthreads().
template <class T, int RowCount, int D>
__device__ inline void load_tile(Tile<T, RowCount, D>& tile, const Rows<const T>& m, int64_t row, int valid,
                                 int64_t column, int head_size) {
  constexpr int length = vector_length<T>, chunks = D / length, rows = attention_threads / chunks;
  static_assert(RowCount % rows == 0);
  const int first = static_cast<int>(threadIdx.x) / chunks,
            d = static_cast<int>(threadIdx.x) % chunks * length;
  const T* from = m.data + (row + first) * m.stride + column + d;
  T* to = tile.row(first) + d;
  const int64_t step = rows * m.stride;
#pragma unroll
  for (int r = 0; r < RowCount; r += rows) {
    const bool inside = first + r < valid && d < head_size;
    if (m.vectors)
      copy_async_16(to, inside ? from : m.data, inside);
    else
      for (int e = 0; e < length; ++e) to[e] = inside ? from[e] : Convert<T>::from(0.0f);
    from += step;
    to += rows * Tile<T, RowCount, D>::pitch;
  }
}

/// load_tile() of dy, each element times its gate and rounded: the gradient of the ungated output.
template <class T, int RowCount, int D>
__device__ inline void load_gated_tile(Tile<T, RowCount, D>& tile, const AttentionProblem& p,
                                       const Rows<const T>& dy, const Rows<const T>& gate, int64_t row,
                                       int valid, int head) {
  for (int i = static_cast<int>(threadIdx.x); i < RowCount * D; i += attention_threads) {
    const int r = i / D, d = i % D;
    float v = 0.0f;
    if (r < valid && d < p.head_size)
      v = to_float(dy.data[(row + r) * dy.stride + static_cast<int64_t>(head) * p.head_size + d]) *
          gate_of(p, gate, row + r, head, d);
    tile.row(r)[d] = Convert<T>::from(v);
  }
}

/// Eight elements of a row as floats.
template <class T>
__device__ inline void load_8(float (&x)[8], const T* from, bool vectors) {
  if (!vectors) {
    for (int e = 0; e < 8; ++e) x[e] = to_float(from[e]);
    return;
  }
  constexpr int length = vector_length<T>;
  for (int e = 0; e < 8; e += length) {
    const Vector<T> v = Vector<T>::load(from + e);
    for (int i = 0; i < length; ++i) x[e + i] = v.v[i];
  }
}

/// Writes two neighbouring elements of a row.
template <class T>
__device__ inline void write_pair(const Rows<T>& m, int64_t row, int64_t column, float first, float second) {
  T* to = m.data + row * m.stride + column;
  if (m.add) {
    first += to_float(to[0]);
    second += to_float(to[1]);
  }
  if (!m.vectors) {
    to[0] = Convert<T>::from(first);
    to[1] = Convert<T>::from(second);
  } else if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<uint32_t*>(to) = pack_bf16x2(first, second);
  } else {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  }
}

// ---- products ----

/// A warp's (16, N) floats. Lane l, with g = l / 4 and t = l % 4, holds of columns 8 n to 8 n + 7:
/// v[n][0], v[n][1] at (g, 2t), (g, 2t + 1); v[n][2], v[n][3] at (g + 8, 2t), (g + 8, 2t + 1).
template <int N>
struct Strip {
  float v[N / 8][4];
  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) v[n][0] = v[n][1] = v[n][2] = v[n][3] = 0.0f;
  }
};

/// Shared memory in which a warp hands a strip from lane to lane; bf16 needs none.
template <class T, int N>
struct Patch {
  static constexpr int pitch = N + 4;
  float v[strip_rows * pitch];
};
template <int N>
struct Patch<bf16, N> {};

/// c[i] = a b^T over D: a is `Strips` times 16 rows of a tile, b a tile of N rows. Strips share what is read
/// of b.
template <int Strips, int N, int D>
__device__ inline void multiply_transposed(Strip<N> (&c)[Strips], const bf16* a, const Tile<bf16, N, D>& b) {
  constexpr int pitch = Tile<bf16, N, D>::pitch;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const bf16* left_at = a + lane % 16 * pitch + lane / 16 * 8;
  const bf16* right_at = b.v + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int i = 0; i < Strips; ++i) c[i].clear();
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    uint32_t left[Strips][4], right[4];
#pragma unroll
    for (int i = 0; i < Strips; ++i) load_matrix_x4(left[i], left_at + i * strip_rows * pitch + k);
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      load_matrix_x4(right, right_at + n * pitch + k);
      const uint32_t even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
#pragma unroll
      for (int i = 0; i < Strips; ++i) {
        mma_bf16_16x8x16(c[i].v[n / 8], left[i], even);
        mma_bf16_16x8x16(c[i].v[n / 8 + 1], left[i], odd);
      }
    }
  }
}
template <int N, int D>
__device__ inline void multiply_transposed(Strip<N> (&c)[1], const float* a, const Tile<float, N, D>& b) {
  constexpr int pitch = Tile<float, N, D>::pitch;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4;
  const auto at = [](const float* p) { return *reinterpret_cast<const float4*>(p); };
  c[0].clear();
  for (int k = 0; k < D; k += 4) {
    const float4 x = at(a + g * pitch + k), y = at(a + (g + 8) * pitch + k);
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float4 z = at(b.row(n * 8 + 2 * t + e) + k);
        float &up = c[0].v[n][e], &down = c[0].v[n][e + 2];
        up += x.x * z.x;
        up += x.y * z.y;
        up += x.z * z.z;
        up += x.w * z.w;
        down += y.x * z.x;
        down += y.y * z.y;
        down += y.z * z.z;
        down += y.w * z.w;
      }
  }
}

/// c[i] += p[i] b, where b is M columns, from `column` on, of a tile of N rows. p is rounded to the tile's
/// type.
template <int Strips, int M, int N, int D>
__device__ inline void multiply_add(Strip<M> (&c)[Strips], const Strip<N> (&p)[Strips],
                                    const Tile<bf16, N, D>& b, int column, Patch<bf16, N>&) {
  constexpr int pitch = Tile<bf16, N, D>::pitch;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const bf16* right_at = b.v + lane % 16 * pitch + lane / 16 * 8 + column;
#pragma unroll
  for (int k = 0; k < N; k += 16) {
    uint32_t left[Strips][4], right[4];
#pragma unroll
    for (int i = 0; i < Strips; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float(&x)[4] = p[i].v[k / 8 + r / 2];
        left[i][r] = pack_bf16x2(x[r % 2 * 2], x[r % 2 * 2 + 1]);
      }
#pragma unroll
    for (int n = 0; n < M; n += 16) {
      load_matrix_x4_transposed(right, right_at + k * pitch + n);
      const uint32_t even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
#pragma unroll
      for (int i = 0; i < Strips; ++i) {
        mma_bf16_16x8x16(c[i].v[n / 8], left[i], even);
        mma_bf16_16x8x16(c[i].v[n / 8 + 1], left[i], odd);
      }
    }
  }
}
template <int M, int N, int D>
__device__ inline void multiply_add(Strip<M> (&c)[1], const Strip<N> (&p)[1], const Tile<float, N, D>& b,
                                    int column, Patch<float, N>& patch) {
  constexpr int pitch = Patch<float, N>::pitch;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) patch.v[(g + e / 2 * 8) * pitch + n * 8 + 2 * t + e % 2] = p[0].v[n][e];
  __syncwarp();
  for (int k = 0; k < N; ++k) {
    const float up = patch.v[g * pitch + k], down = patch.v[(g + 8) * pitch + k];
    const float* from = b.row(k) + column + 2 * t;
#pragma unroll
    for (int n = 0; n < M / 8; ++n) {
      const float2 z = *reinterpret_cast<const float2*>(from + n * 8);
      c[0].v[n][0] += up * z.x;
      c[0].v[n][1] += up * z.y;
      c[0].v[n][2] += down * z.x;
      c[0].v[n][3] += down * z.y;
    }
  }
  __syncwarp();
}

/// Writes the strip's first row, and the row eight below it, at this lane's columns; only rows below `valid`
/// and columns below `columns`. `row` and `column` are the place of the strip's corner in the matrix.
template <int N, class T>
__device__ inline void write_strip(const Strip<N>& c, const Rows<T>& m, int64_t row, int valid,
                                   int64_t column, int columns) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    if (n * 8 >= columns) break;  // head sizes are multiples of 8
    if (g < valid) write_pair(m, row + g, column + n * 8 + 2 * t, c.v[n][0], c.v[n][1]);
    if (g + 8 < valid) write_pair(m, row + g + 8, column + n * 8 + 2 * t, c.v[n][2], c.v[n][3]);
  }
}

/// Over a warp, the same in all lanes.
__device__ inline int warp_min(int v) {
  for (int far = warp_size / 2; far > 0; far /= 2) {
    const int other = __shfl_xor_sync(full_warp, v, far);
    v = other < v ? other : v;
  }
  return v;
}
__device__ inline int warp_max(int v) { return -warp_min(-v); }

/// Over the four lanes that share a row of a strip.
__device__ inline float row_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(full_warp, v, 1));
  return fmaxf(v, __shfl_xor_sync(full_warp, v, 2));
}
__device__ inline float row_sum(float v) {
  v += __shfl_xor_sync(full_warp, v, 1);
  return v + __shfl_xor_sync(full_warp, v, 2);
}

/// Calls f(type tag, head size bound) with the instance that serves a head size.
template <int D>
struct HeadBound {
  static constexpr int value = D;
};
template <class F>
void with_head_bound(int64_t head_size, const F& f) {
  if (head_size <= 64) return f(HeadBound<64>{});
  if (head_size <= 128) return f(HeadBound<128>{});
  f(HeadBound<256>{});
}

}  // namespace osprey::cuda
