#include "kernels/norm.h"

#include <algorithm>

#include "kernels/cpu/isa/norm.h"
#include "kernels/cpu/isa/pointwise.h"

namespace osprey::cpu {

using kernels::norm_partials;

namespace {

template <class T>
NormRows<T> forward_rows(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& stats,
                         float eps, int64_t begin, int64_t end) {
  NormRows<T> a{};
  a.rows = end - begin;
  a.cols = x.cols();
  a.x_stride = x.row_stride();
  a.x = x.as<T>() + begin * a.x_stride;
  a.out_stride = y.row_stride();
  a.out = y.as<T>() + begin * a.out_stride;
  a.weight = weight.as<T>();
  a.weight_count = weight.numel();
  a.stats = stats.as<float>() + begin * (stats.numel() / x.rows());
  a.eps = eps;
  return a;
}

template <class T>
T* row(const Tensor& t, int64_t r) {
  return t.as<T>() + r * t.row_stride();
}

/// Runs `kernel` on fixed chunks of rows, each with its own partial row, then sums the partials in
/// order: the result does not depend on the number of threads.
template <class T, class Kernel>
void backward_rows(const Queue& queue, const Accum& dx, const Tensor& dsum, const Tensor& dy, const Tensor& x,
                   const Tensor& weight, const Tensor& stats, const Tensor& partial, Kernel kernel) {
  const Tensor base = dx && dx.add ? dx.tensor : dsum;
  const int64_t rows = x.rows(), chunks = norm_partials(queue, rows), width = partial.cols();
  float* partials = partial.as<float>();
  parallel_for(queue, chunks, 1, [&](int64_t first, int64_t last) {
    std::fill(partials + first * width, partials + last * width, 0.0f);
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = rows * i / chunks, end = rows * (i + 1) / chunks;
      NormRows<T> a{};
      a.rows = end - begin;
      a.cols = x.cols();
      a.x_stride = x.row_stride();
      a.x = x.as<T>() + begin * a.x_stride;
      a.dy_stride = dy.row_stride();
      a.dy = dy.as<T>() + begin * a.dy_stride;
      if (dx) {
        a.out_stride = dx.tensor.row_stride();
        a.out = dx.tensor.as<T>() + begin * a.out_stride;
      }
      if (base.defined()) {
        a.base_stride = base.row_stride();
        a.base = base.as<T>() + begin * a.base_stride;
      }
      a.weight = weight.as<T>();
      a.weight_count = weight.numel();
      a.stats = stats.as<float>() + begin * (stats.numel() / rows);
      a.partial = partials + i * width;
      kernel(a);
    }
  });
}

/// out (+)= sum over chunks of columns [begin, begin + out.numel()) of `partial`.
void sum_partials(const Accum& out, const Tensor& partial, int64_t begin) {
  if (!out) return;
  float* sum = out.tensor.as<float>();
  const int64_t n = out.tensor.numel(), width = partial.cols();
  if (!out.add) std::fill(sum, sum + n, 0.0f);
  for (int64_t i = 0; i < partial.rows(); ++i) {
    const float* p = partial.as<float>() + i * width + begin;
    for (int64_t c = 0; c < n; ++c) sum[c] += p[c];
  }
}

}  // namespace

void rmsnorm_forward(const Queue& queue, const kernels::RmsnormForward& f) {
  parallel_for(queue, f.x.rows(), 16, [&](int64_t begin, int64_t end) {
    if (f.x.dtype == DType::bf16)
      norm_table().rmsnorm_forward_bf16(forward_rows<bf16>(f.y, f.x, f.weight, f.rstd, f.eps, begin, end));
    else
      norm_table().rmsnorm_forward_f32(forward_rows<float>(f.y, f.x, f.weight, f.rstd, f.eps, begin, end));
  });
}

void add_rmsnorm_forward(const Queue& queue, const kernels::AddRmsnormForward& f) {
  // Row by row, so that the norm finds the sum in the cache.
  parallel_for(queue, f.a.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (f.a.dtype == DType::bf16) {
        pointwise_table().add_bf16(row<bf16>(f.sum, r), row<bf16>(f.a, r), row<bf16>(f.b, r), f.a.cols());
        norm_table().rmsnorm_forward_bf16(forward_rows<bf16>(f.y, f.sum, f.weight, f.rstd, f.eps, r, r + 1));
      } else {
        pointwise_table().add_f32(row<float>(f.sum, r), row<float>(f.a, r), row<float>(f.b, r), f.a.cols());
        norm_table().rmsnorm_forward_f32(forward_rows<float>(f.y, f.sum, f.weight, f.rstd, f.eps, r, r + 1));
      }
    }
  });
}

void rmsnorm_backward(const Queue& queue, const kernels::RmsnormBackward& b) {
  if (b.x.dtype == DType::bf16)
    backward_rows<bf16>(queue, b.dx, b.dsum, b.dy, b.x, b.weight, b.rstd, b.partial,
                        norm_table().rmsnorm_backward_bf16);
  else
    backward_rows<float>(queue, b.dx, b.dsum, b.dy, b.x, b.weight, b.rstd, b.partial,
                         norm_table().rmsnorm_backward_f32);
  sum_partials(b.dweight, b.partial, 0);
}

void layernorm_forward(const Queue& queue, const kernels::LayernormForward& f) {
  parallel_for(queue, f.x.rows(), 16, [&](int64_t begin, int64_t end) {
    if (f.x.dtype == DType::bf16) {
      auto a = forward_rows<bf16>(f.y, f.x, f.weight, f.stats, f.eps, begin, end);
      a.bias = f.bias.as<bf16>();
      norm_table().layernorm_forward_bf16(a);
    } else {
      auto a = forward_rows<float>(f.y, f.x, f.weight, f.stats, f.eps, begin, end);
      a.bias = f.bias.as<float>();
      norm_table().layernorm_forward_f32(a);
    }
  });
}

void layernorm_backward(const Queue& queue, const kernels::LayernormBackward& b) {
  if (b.x.dtype == DType::bf16)
    backward_rows<bf16>(queue, b.dx, {}, b.dy, b.x, b.weight, b.stats, b.partial,
                        norm_table().layernorm_backward_bf16);
  else
    backward_rows<float>(queue, b.dx, {}, b.dy, b.x, b.weight, b.stats, b.partial,
                         norm_table().layernorm_backward_f32);
  sum_partials(b.dweight, b.partial, 0);
  sum_partials(b.dbias, b.partial, b.x.cols());
}

}  // namespace osprey::cpu
