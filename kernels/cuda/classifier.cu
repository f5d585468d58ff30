// The head with its cross-entropy on a GPU, a few thousand rows at a time: logits by the library into fp32
// scratch, one kernel that makes losses of them and puts d in their place, and the two backward products from
// there.

#include "kernels/cuda/classifier_chunks.h"

#include <limits>

#include "kernels/classifier_rows_chunks.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/row.h"

namespace osprey::cuda {

namespace {

using kernels::Gradients;
using kernels::Op;

constexpr int threads = 512, in_flight = 4, step = 4 * threads, tile = in_flight * step;
constexpr float log2_e = 1.44269504f, lowest = -std::numeric_limits<float>::max();

struct Rows {
  float* logits;
  int64_t stride, vocabulary;
  const int32_t* targets;
  const double* grad_scale;  // or null: 1
  double* losses;
  float* token_losses;  // or null
  float* log_sums;      // or null
};

struct Room {
  float top[threads / warp_size];
  double sum[threads / warp_size];
};

/// This thread's part of the tile at `begin`, several loads at once; what lies past the vocabulary counts as
/// `lowest`.
__device__ void load_tile(float (&v)[in_flight][4], const float* logits, int64_t begin, int64_t vocabulary) {
#pragma unroll
  for (int u = 0; u < in_flight; ++u) {
    const int64_t at = begin + u * step + 4 * static_cast<int64_t>(threadIdx.x);
    Vector<float> x{{lowest, lowest, lowest, lowest}};
    if (at < vocabulary) x = Vector<float>::load(logits + at);  // rows are padded to whole vectors
#pragma unroll
    for (int e = 0; e < 4; ++e) v[u][e] = at + e < vocabulary ? x.v[e] : lowest;
  }
}

struct Softmax {
  float top;
  double sum;  // of exp(logit - top)
};

/// In one read: a sum is scaled down whenever its thread meets a larger logit.
__device__ Softmax softmax_of(const float* logits, int64_t vocabulary, Room& room) {
  float top = lowest, sum = 0;
  for (int64_t begin = 0; begin < vocabulary; begin += tile) {
    float v[in_flight][4];
    load_tile(v, logits, begin, vocabulary);
    float larger = top;
#pragma unroll
    for (int u = 0; u < in_flight; ++u)
#pragma unroll
      for (int e = 0; e < 4; ++e) larger = fmaxf(larger, v[u][e]);
    sum *= fast_exp2((top - larger) * log2_e);
    top = larger;
#pragma unroll
    for (int u = 0; u < in_flight; ++u)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum += fast_exp2((v[u][e] - top) * log2_e);
  }
  const float warp_top = warp_max(top);
  if (threadIdx.x % warp_size == 0) room.top[threadIdx.x / warp_size] = warp_top;
  __syncthreads();
  float block_top = lowest;
  for (int w = 0; w < threads / warp_size; ++w) block_top = fmaxf(block_top, room.top[w]);
  sum *= fast_exp2((top - block_top) * log2_e);
  return {block_top, block_sum(static_cast<double>(sum), room.sum)};
}

__device__ void store_four(float* to, const float (&v)[4]) {
  Vector<float>{{v[0], v[1], v[2], v[3]}}.store(to);
}
__device__ void store_four(bf16* to, const float (&v)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]));
}

/// d = (softmax - onehot) scale, in place of the logits it is made of. A row of bf16 is half as long: tile t
/// of d falls into tile t/2 of the logits, and at the barrier of tile t the block has read all tiles up to t.
template <class D>
__device__ void write_gradient(float* logits, int64_t vocabulary, int64_t target, const Softmax& softmax,
                               float scale) {
  D* d = reinterpret_cast<D*>(logits);
  const auto factor = static_cast<float>(1.0 / softmax.sum);
  for (int64_t begin = 0; begin < vocabulary; begin += tile) {
    float v[in_flight][4];
    load_tile(v, logits, begin, vocabulary);
    __syncthreads();
#pragma unroll
    for (int u = 0; u < in_flight; ++u) {
      const int64_t at = begin + u * step + 4 * static_cast<int64_t>(threadIdx.x);
      if (at >= vocabulary) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = fast_exp2((v[u][e] - softmax.top) * log2_e) * factor;
        v[u][e] = (at + e == target ? p - 1 : p) * scale;
      }
      store_four(d + at, v[u]);
    }
  }
}

template <class D>
__device__ void write_zeros(float* logits, int64_t vocabulary) {
  const float zeros[4] = {};
  for (int64_t at = 4 * static_cast<int64_t>(threadIdx.x); at < vocabulary; at += step)
    store_four(reinterpret_cast<D*>(logits) + at, zeros);
}

/// One block a row: its loss, and d in D where gradients are wanted. Only this block touches the row.
template <class D, Gradients gradients>
__global__ void loss_and_gradient(Rows a) {
  Room& room = block_shared<Room>();
  const int64_t row = blockIdx.x, target = a.targets[row];
  float* logits = a.logits + row * a.stride;
  double loss = 0, log_sum = 0;
  if (target >= 0 && target < a.vocabulary) {
    const float wanted = logits[target];
    const Softmax softmax = softmax_of(logits, a.vocabulary, room);
    log_sum = static_cast<double>(softmax.top) + log(softmax.sum);
    loss = log_sum - static_cast<double>(wanted);
    if constexpr (gradients == Gradients::wanted)
      write_gradient<D>(logits, a.vocabulary, target, softmax,
                        a.grad_scale ? static_cast<float>(*a.grad_scale) : 1.0f);
  } else {
    if (target != -1) loss = std::numeric_limits<double>::quiet_NaN();
    if constexpr (gradients == Gradients::wanted) write_zeros<D>(logits, a.vocabulary);
  }
  if (threadIdx.x != 0) return;
  a.losses[row] = loss;
  if (a.token_losses) a.token_losses[row] = static_cast<float>(loss);
  if (a.log_sums) a.log_sums[row] = static_cast<float>(log_sum);
}

struct Columns {
  const float* logits;
  void* d;
  int64_t rows;  // of the head: columns here
  int64_t first;
  const int32_t* targets;
  const float* log_sums;
  const double* grad_scale;  // or null: 1
};

/// One block a token: d = (exp(logits - log_sum) - onehot) scale for some rows of the head.
template <class D>
__global__ void gradient_of_columns(Columns a) {
  const int64_t token = blockIdx.x, target = a.targets[token];
  const float* logits = a.logits + token * a.rows;
  D* d = static_cast<D*>(a.d) + token * a.rows;
  const float log_sum = a.log_sums[token];
  const float scale = target < 0 ? 0.0f : a.grad_scale ? static_cast<float>(*a.grad_scale) : 1.0f;
  for (int64_t j = threadIdx.x; j < a.rows; j += threads) {
    const float p = target < 0 ? 0.0f : fast_exp2((logits[j] - log_sum) * log2_e);
    d[j] = Convert<D>::from((a.first + j == target ? p - 1 : p) * scale);
  }
}

struct Totals {
  const double* losses;
  const int32_t* targets;
  int64_t rows;
  const double* grad_scale;  // or null: 1
  double* sums;
  float* loss;  // or null
};

constexpr int total_threads = 1024;
struct TotalRoom {
  double part[total_threads / warp_size];
};

/// One block: every thread adds up every 1024th row, in order.
__global__ void add_totals(Totals a) {
  TotalRoom& room = block_shared<TotalRoom>();
  double loss = 0, counted = 0;
  for (int64_t row = threadIdx.x; row < a.rows; row += total_threads) {
    loss += a.losses[row];
    counted += a.targets[row] != -1;
  }
  loss = block_sum(loss, room.part);
  counted = block_sum(counted, room.part);
  if (threadIdx.x != 0) return;
  a.sums[0] += loss;
  a.sums[1] += counted;
  if (a.loss) *a.loss = static_cast<float>(loss * (a.grad_scale ? *a.grad_scale : 1.0));
}

struct Scratch {
  Scratch(const Tensor& memory, const ClassifierChunks& chunks, int64_t vocabulary) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data);
    auto* next = reinterpret_cast<float*>((address + 255) / 256 * 256);
    logits = make_tensor(next, {chunks.rows, vocabulary}, DType::f32, memory.device);
    logits.strides[0] = chunks.stride;
    losses = reinterpret_cast<double*>(next + chunks.rows * chunks.stride);
  }
  Tensor logits;
  double* losses;

  /// The rows that d replaces: a narrower dtype lies as many bytes apart.
  Tensor gradients(int64_t rows, DType dtype) const {
    Tensor d = logits.row_range(0, rows);
    d.dtype = dtype;
    d.strides[0] = logits.strides[0] * size_bytes(DType::f32) / size_bytes(dtype);
    return d;
  }
};

template <class D, Gradients gradients>
void launch_rows(const Queue& queue, int64_t count, const Rows& rows) {
  launch("cross_entropy", queue, {dim3(static_cast<unsigned>(count)), dim3(threads), sizeof(Room)},
         loss_and_gradient<D, gradients>, rows);
}

}  // namespace

int64_t classifier_scratch(int64_t rows, int64_t vocabulary, DType, Gradients) {
  return ClassifierChunks::of(rows, vocabulary).floats();
}

void classifier(const Queue& queue, const kernels::Classifier& args) {
  classifier(queue, args, ClassifierChunks::of(args.x.rows(), args.weight.rows()));
}

void classifier(const Queue& queue, const kernels::Classifier& args, const ClassifierChunks& chunks) {
  const int64_t n = args.x.rows(), vocabulary = args.weight.rows();
  const Scratch scratch(args.scratch, chunks, vocabulary);
  const bool gradients = args.dx.defined() || args.dweight;
  const double* grad_scale = args.grad_scale.defined() ? args.grad_scale.as<double>() : nullptr;
  for (int64_t begin = 0; begin < n; begin += chunks.rows) {
    const int64_t end = std::min(n, begin + chunks.rows), count = end - begin;
    const Tensor x = args.x.row_range(begin, end);
    product(queue,
            {.d = scratch.logits.row_range(0, count), .a = x, .b = args.weight, .op_b = Op::transpose});
    const Rows rows{scratch.logits.as<float>(),
                    chunks.stride,
                    vocabulary,
                    args.targets.as<int32_t>() + begin,
                    grad_scale,
                    scratch.losses + begin,
                    args.token_losses.defined() ? args.token_losses.as<float>() + begin : nullptr,
                    args.log_sums.defined() ? args.log_sums.as<float>() + begin : nullptr};
    if (!gradients)
      launch_rows<float, Gradients::none>(queue, count, rows);
    else if (args.x.dtype == DType::bf16)
      launch_rows<bf16, Gradients::wanted>(queue, count, rows);
    else
      launch_rows<float, Gradients::wanted>(queue, count, rows);
    const Tensor d = scratch.gradients(count, args.x.dtype);
    if (args.dx.defined()) product(queue, {.d = args.dx.row_range(begin, end), .a = d, .b = args.weight});
    if (args.dweight)
      product(queue, {.d = args.dweight.tensor,
                      .a = d,
                      .b = x,
                      .op_a = Op::transpose,
                      .beta = args.dweight.add || begin > 0 ? 1.0f : 0.0f});
  }
  const Totals totals{
      scratch.losses, args.targets.as<int32_t>(), n,
      grad_scale,     args.sums.as<double>(),     args.loss.defined() ? args.loss.as<float>() : nullptr};
  launch("cross_entropy", queue, {dim3(1), dim3(total_threads), sizeof(TotalRoom)}, add_totals, totals);
}

void classifier_rows(const Queue& queue, const kernels::ClassifierRows& args) {
  const int64_t n = args.x.rows(), rows = args.weight.rows();
  const auto chunks = kernels::ClassifierRowsChunks::of(n, rows, args.x.dtype);
  for (int64_t begin = 0; begin < n; begin += chunks.tokens) {
    const int64_t end = std::min(n, begin + chunks.tokens), count = end - begin;
    const Tensor x = args.x.row_range(begin, end), logits = chunks.logits(args.scratch).row_range(0, count),
                 d = chunks.d(args.scratch).row_range(0, count);
    product(queue, {.d = logits, .a = x, .b = args.weight, .op_b = Op::transpose});
    const Columns columns{logits.as<float>(),
                          d.data,
                          rows,
                          args.first_row,
                          args.targets.as<int32_t>() + begin,
                          args.log_sums.as<float>() + begin,
                          args.grad_scale.defined() ? args.grad_scale.as<double>() : nullptr};
    const bool narrow = args.x.dtype == DType::bf16;
    launch("cross_entropy", queue, {dim3(static_cast<unsigned>(count)), dim3(threads), 0},
           narrow ? gradient_of_columns<bf16> : gradient_of_columns<float>, columns);
    product(queue,
            {.d = args.dweight, .a = d, .b = x, .op_a = Op::transpose, .beta = begin > 0 ? 1.0f : 0.0f});
  }
}

}  // namespace osprey::cuda
