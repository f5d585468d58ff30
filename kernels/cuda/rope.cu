#include "kernels/rope.h"

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/numerics/rope.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256, warps = threads / warp_size, most_half = 128;
/// Angles that a block holds at a time: of this many pairs, in rows of D / 2.
constexpr int most_angles = 1024, most_rows = 32;

/// Turns that each pair makes from one position to the next. Part of the kernel's arguments: the same for
/// all.
struct Frequencies {
  double turns[most_half];
};

/// The heads of q or of k.
template <class T>
struct Side {
  T* to;  // null: not wanted
  const T* from;
  const T* weight;  // null: no norm
  T* saved;         // heads before the norm: forward writes them if there is room, backward reads them
  int64_t to_stride, from_stride, heads;
};

template <class T>
struct Rope {
  Side<T> q, k;
  const int32_t* positions;
  int64_t saved_stride, rows, rows_at_once;
  int half;
  float eps;
  int lanes;        // threads for a head, a power of two
  float direction;  // 1 turns forward, -1 back
  float magnitude;  // of cosines and sines
  float* partial;   // backward through norms: (blocks, 2 * D)
  Frequencies frequencies;
};

struct Angles {
  float cosines[most_angles], sines[most_angles];
};

/// Those of rows [first, first + count). A negative position has none: its row becomes NaN.
template <class T>
__device__ void make_angles(const Rope<T>& a, int64_t first, int count, Angles& angles) {
  for (int i = static_cast<int>(threadIdx.x); i < count * a.half; i += threads) {
    const int32_t position = a.positions[first + i / a.half];
    const Turn turn = turn_by(static_cast<double>(position) * a.frequencies.turns[i % a.half]);
    angles.cosines[i] = position < 0 ? NAN : turn.cosine * a.magnitude;
    angles.sines[i] = position < 0 ? NAN : turn.sine * a.magnitude * a.direction;
  }
}

/// A thread's part of one head: Count packs of the lower half and their partners in the upper half.
template <class T, int V, int Count>
struct Part {
  float low[Count][V], high[Count][V];

  /// f(pack, first element of it within the half); packs beyond the half are left out.
  template <class F>
  __device__ static void each(const Rope<T>& a, int lane, const F& f) {
#pragma unroll
    for (int j = 0; j < Count; ++j) {
      const int i = (j * a.lanes + lane) * V;
      if (i < a.half) f(j, i);
    }
  }
  __device__ void load(const Rope<T>& a, int lane, const T* head) {
    each(a, lane, [&](int j, int i) {
      const auto l = Pack<T, V>::load(head + i), h = Pack<T, V>::load(head + a.half + i);
#pragma unroll
      for (int e = 0; e < V; ++e) low[j][e] = l[e], high[j][e] = h[e];
    });
  }
  __device__ void store(const Rope<T>& a, int lane, T* head) const {
    each(a, lane, [&](int j, int i) {
      Pack<T, V>::from(low[j]).store(head + i);
      Pack<T, V>::from(high[j]).store(head + a.half + i);
    });
  }
  __device__ void turn(const Rope<T>& a, int lane, const Angles& angles, int at) {
    each(a, lane, [&](int j, int i) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float c = angles.cosines[at + i + e], s = angles.sines[at + i + e], x = low[j][e],
                    y = high[j][e];
        low[j][e] = x * c - y * s;
        high[j][e] = y * c + x * s;
      }
    });
  }
};

/// Sum over the threads of a head. All threads of a warp call it.
__device__ inline float head_sum(float v, int lanes) {
  for (int d = lanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(full_warp, v, d);
  return v;
}

template <class T, int V, int Count>
__device__ float inverse_rms(const Rope<T>& a, int lane, const Part<T, V, Count>& x) {
  float squares = 0;
  Part<T, V, Count>::each(a, lane, [&](int j, int) {
#pragma unroll
    for (int e = 0; e < V; ++e) squares += x.low[j][e] * x.low[j][e] + x.high[j][e] * x.high[j][e];
  });
  return 1.0f / sqrtf(head_sum(squares, a.lanes) / static_cast<float>(2 * a.half) + a.eps);
}

/// Calls f(side, row, head, row of the angles, lane, whether it is one) for the heads of `count` rows, which
/// the groups of `lanes` threads share out. The last groups of a block may have none; they run along, for
/// sums over warps.
template <class T, class F>
__device__ void each_head(const Rope<T>& a, int64_t first, int count, const F& f) {
  const int group = static_cast<int>(threadIdx.x) / a.lanes, groups = threads / a.lanes;
  const int lane = static_cast<int>(threadIdx.x) % a.lanes;
  const int heads = static_cast<int>(a.q.heads + a.k.heads), all = count * heads;
  for (int start = 0; start < all; start += groups) {
    const bool is = start + group < all;
    const int item = is ? start + group : 0, row = item / heads, head = item % heads;
    const bool key = head >= a.q.heads;
    f(key, first + row, key ? head - a.q.heads : head, row, lane, is);
  }
}

/// Turns heads by the angles of their rows, forward after the norm if there is one. A block takes some rows,
/// so that angles are made once for all heads.
template <class T, int V, int Count>
__global__ void rope_kernel(Rope<T> a) {
  Angles& angles = block_shared<Angles>();
  const int64_t first = int64_t{blockIdx.x} * a.rows_at_once;
  const int count = static_cast<int>(a.rows - first < a.rows_at_once ? a.rows - first : a.rows_at_once);
  make_angles(a, first, count, angles);
  __syncthreads();
  each_head(a, first, count, [&](bool key, int64_t row, int64_t head, int angle_row, int lane, bool is) {
    const Side<T>& side = key ? a.k : a.q;
    const int64_t column = head * 2 * a.half;
    Part<T, V, Count> x{};
    if (is) x.load(a, lane, side.from + row * side.from_stride + column);
    if (is && side.saved) x.store(a, lane, side.saved + row * a.saved_stride + column);
    if (a.q.weight || a.k.weight) {
      const float rstd = inverse_rms(a, lane, x);
      if (side.weight) {
        Part<T, V, Count> w;
        w.load(a, lane, side.weight);
        Part<T, V, Count>::each(a, lane, [&](int j, int) {
#pragma unroll
          for (int e = 0; e < V; ++e) x.low[j][e] *= rstd * w.low[j][e], x.high[j][e] *= rstd * w.high[j][e];
        });
      }
    }
    x.turn(a, lane, angles, angle_row * a.half);
    if (is) x.store(a, lane, side.to + row * side.to_stride + column);
  });
}

/// g, the gradient of a normalised head, becomes that of x; `dweight` grows.
template <class T, int V, int Count>
__device__ void norm_backward(const Rope<T>& a, int lane, Part<T, V, Count>& g, const Part<T, V, Count>& x,
                              const T* weight, Part<T, V, Count>& dweight) {
  using P = Part<T, V, Count>;
  const float rstd = inverse_rms(a, lane, x);
  P w{};
  w.load(a, lane, weight);
  float sum = 0;
  P::each(a, lane, [&](int j, int) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const float low = x.low[j][e] * rstd, high = x.high[j][e] * rstd;
      dweight.low[j][e] += g.low[j][e] * low;
      dweight.high[j][e] += g.high[j][e] * high;
      g.low[j][e] *= w.low[j][e];
      g.high[j][e] *= w.high[j][e];
      sum += g.low[j][e] * low + g.high[j][e] * high;
    }
  });
  const float mean = head_sum(sum, a.lanes) / static_cast<float>(2 * a.half);
  P::each(a, lane, [&](int j, int) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      g.low[j][e] = rstd * (g.low[j][e] - x.low[j][e] * rstd * mean);
      g.high[j][e] = rstd * (g.high[j][e] - x.high[j][e] * rstd * mean);
    }
  });
}

struct BackwardShared {
  Angles angles;
  float sums[warps][4 * most_half];  // dq_weight, dk_weight
};

/// A block's gradients of one weight, which lie with its threads, become its part of `partial`. Groups are
/// added up within warps, then warps in order.
template <class T, int V, int Count>
__device__ void write_partial(const Rope<T>& a, Part<T, V, Count>& dweight, float* partial,
                              BackwardShared& s) {
  const int t = static_cast<int>(threadIdx.x), warp = t / warp_size, lane = t % a.lanes;
  const auto over_groups = [&](float v) {
    for (int d = a.lanes; d < warp_size; d *= 2) v += __shfl_xor_sync(full_warp, v, d);
    return v;
  };
#pragma unroll
  for (int j = 0; j < Count; ++j)
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const float low = over_groups(dweight.low[j][e]), high = over_groups(dweight.high[j][e]);
      const int i = (j * a.lanes + lane) * V + e;
      if (t % warp_size >= a.lanes || i >= a.half) continue;
      s.sums[warp][i] = low;
      s.sums[warp][a.half + i] = high;
    }
  __syncthreads();
  for (int i = t; i < 2 * a.half; i += threads) {
    float total = 0;
    for (int w = 0; w < warps; ++w) total += s.sums[w][i];
    partial[i] = total;
  }
  __syncthreads();
}

/// sum += factor * part: no branch, so that both sums of a kernel stay in registers.
template <class T, int V, int Count>
__device__ void add(Part<T, V, Count>& sum, const Part<T, V, Count>& part, float factor) {
#pragma unroll
  for (int j = 0; j < Count; ++j)
#pragma unroll
    for (int e = 0; e < V; ++e) {
      sum.low[j][e] += factor * part.low[j][e];
      sum.high[j][e] += factor * part.high[j][e];
    }
}

/// Back through the turn and the norm. A block takes a chunk of the rows and sums up its gradients of the
/// weights.
template <class T, int V, int Count>
__global__ void norm_rope_backward_kernel(Rope<T> a) {
  using P = Part<T, V, Count>;
  auto& s = block_shared<BackwardShared>();
  const int64_t begin = a.rows * blockIdx.x / gridDim.x, end = a.rows * (blockIdx.x + 1) / gridDim.x;
  P dq{}, dk{};
  for (int64_t first = begin; first < end; first += a.rows_at_once) {
    const int count = static_cast<int>(end - first < a.rows_at_once ? end - first : a.rows_at_once);
    __syncthreads();
    make_angles(a, first, count, s.angles);
    __syncthreads();
    each_head(a, first, count, [&](bool key, int64_t row, int64_t head, int angle_row, int lane, bool is) {
      const Side<T>& side = key ? a.k : a.q;
      const int64_t column = head * 2 * a.half;
      P g{}, x{}, dweight{};
      if (is) {
        g.load(a, lane, side.from + row * side.from_stride + column);
        if (side.weight) x.load(a, lane, side.saved + row * a.saved_stride + column);
      }
      g.turn(a, lane, s.angles, angle_row * a.half);
      // Groups of a warp may have different sides, and all take part in its sums.
      const T* weight = side.weight ? side.weight : a.q.weight ? a.q.weight : a.k.weight;
      P through = g;
      norm_backward(a, lane, through, x, weight, dweight);
      if (!is) return;
      if (side.weight) {
        g = through;
        add(dq, dweight, key ? 0.0f : 1.0f);
        add(dk, dweight, key ? 1.0f : 0.0f);
      }
      if (side.to) g.store(a, lane, side.to + row * side.to_stride + column);
    });
  }
  float* partial = a.partial + int64_t{blockIdx.x} * 4 * a.half;
  write_partial(a, dq, partial, s);
  write_partial(a, dk, partial + 2 * a.half, s);
}

/// What both directions share. `saved` may be undefined; k's heads lie behind q's.
template <class T>
Rope<T> arguments(const Tensor& to_q, const Tensor& to_k, const Tensor& q, const Tensor& k,
                  const Tensor& q_weight, const Tensor& k_weight, const Tensor& saved,
                  const Tensor& positions, int64_t head_size, double theta, const RopeScaling& scaling,
                  float eps) {
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.as<T>() : nullptr; };
  const auto stride = [](const Tensor& t) { return t.defined() ? t.row_stride() : 0; };
  Rope<T> a{};
  a.q = {pointer(to_q), q.as<T>(),      pointer(q_weight),   pointer(saved),
         stride(to_q),  q.row_stride(), q.cols() / head_size};
  a.k = {pointer(to_k), k.as<T>(),      pointer(k_weight),   pointer(saved),
         stride(to_k),  k.row_stride(), k.cols() / head_size};
  if (saved.defined()) a.k.saved += q.cols();
  a.positions = positions.as<int32_t>();
  a.saved_stride = stride(saved);
  a.rows = q.rows();
  a.half = static_cast<int>(head_size / 2);
  a.eps = eps;
  for (int i = 0; i < a.half; ++i) a.frequencies.turns[i] = turns_per_position(theta, i, a.half, scaling);
  a.magnitude = static_cast<float>(scaling.magnitude);
  return a;
}

template <class T>
bool fits(const Rope<T>& a) {
  const auto side = [&](const Side<T>& s) {
    return vectorizable(s.to, s.to_stride, a.half) && vectorizable(s.from, s.from_stride, a.half) &&
           vectorizable(s.weight, 0, a.half) && vectorizable(s.saved, a.saved_stride, a.half);
  };
  return side(a.q) && side(a.k);
}

/// Threads for a head of so many packs, of which each takes up to `count`.
int lanes_for(int packs, int count) {
  int lanes = 1;
  while (lanes * count < packs) lanes *= 2;
  return lanes;
}

template <class T>
int rows_with_angles(const Rope<T>& a) {
  return std::min(most_rows, most_angles / a.half);
}

template <class T, int V, int Count>
void run(const Queue& queue, Rope<T> a) {
  a.lanes = lanes_for(a.half / V, Count);
  // About four heads a thread: enough to make angles worth while, few enough for many blocks.
  const int64_t of_row = (a.q.heads + a.k.heads) * a.lanes;
  a.rows_at_once = static_cast<int>(std::clamp<int64_t>(4 * threads / of_row, 1, rows_with_angles(a)));
  const int64_t blocks = (a.rows + a.rows_at_once - 1) / a.rows_at_once;
  launch("rope", queue,
         {.blocks = static_cast<unsigned>(blocks), .threads = threads, .shared_bytes = sizeof(Angles)},
         rope_kernel<T, V, Count>, a);
}

template <class T, int V, int Count>
void run_norm_backward(const Queue& queue, Rope<T> a, int64_t blocks) {
  a.lanes = lanes_for(a.half / V, Count);
  a.rows_at_once = rows_with_angles(a);
  launch(
      "rope backward", queue,
      {.blocks = static_cast<unsigned>(blocks), .threads = threads, .shared_bytes = sizeof(BackwardShared)},
      norm_rope_backward_kernel<T, V, Count>, a);
}

template <class T>
void forward(const Queue& queue, const kernels::RopeForward& f) {
  Rope<T> a = arguments<T>(f.q, f.k, f.q, f.k, f.q_weight, f.k_weight, f.saved, f.positions, f.head_size,
                           f.theta, f.scaling, f.eps);
  a.direction = 1;
  if (a.rows == 0) return;
  fits(a) ? run<T, vector_length<T>, 1>(queue, a) : run<T, 1, 4>(queue, a);
}

template <class T>
void backward(const Queue& queue, const kernels::RopeBackward& b) {
  Rope<T> a = arguments<T>(b.dx_q, b.dx_k, b.dy_q, b.dy_k, b.q_weight, b.k_weight, b.saved, b.positions,
                           b.head_size, b.theta, b.scaling, b.eps);
  a.direction = -1;
  if (a.q.weight || a.k.weight) {
    a.partial = b.partial.as<float>();
    const int64_t blocks = b.partial.rows();
    fits(a) ? run_norm_backward<T, vector_length<T>, 1>(queue, a, blocks)
            : run_norm_backward<T, 1, 4>(queue, a, blocks);
    return;
  }
  a.q.saved = a.k.saved = nullptr;
  if (!a.q.to) a.q.heads = 0;
  if (!a.k.to) a.k.heads = 0;
  if (a.rows == 0 || a.q.heads + a.k.heads == 0) return;
  fits(a) ? run<T, vector_length<T>, 1>(queue, a) : run<T, 1, 4>(queue, a);
}

}  // namespace

void rope_forward(const Queue& queue, const kernels::RopeForward& f) {
  f.q.dtype == DType::bf16 ? forward<bf16>(queue, f) : forward<float>(queue, f);
}

void rope_backward(const Queue& queue, const kernels::RopeBackward& b) {
  b.dy_q.dtype == DType::bf16 ? backward<bf16>(queue, b) : backward<float>(queue, b);
  if (!b.q_weight.defined() && !b.k_weight.defined()) return;
  const float* partial = b.partial.as<float>();
  sum_partials("rope backward", queue, b.dq_weight, partial, b.partial.rows(), 2 * b.head_size);
  sum_partials("rope backward", queue, b.dk_weight, partial + b.head_size, b.partial.rows(), 2 * b.head_size);
}

}  // namespace osprey::cuda
