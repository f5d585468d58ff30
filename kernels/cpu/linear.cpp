// Linear layers on the CPU, by our own bf16 product where the CPU has AVX512-BF16 and no AMX, and
// by oneDNN everywhere else. Measured on two such cores at the shapes of a 512-wide model, as
// fractions of oneDNN's rate on plain layouts: forward and dgrad 1.04 (oneDNN with its own packed
// weights: 1.04), wgrad 1.09 with packing included. Ours also adds the residual in the epilogue and
// allocates nothing.

#include "kernels/linear.h"

#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/scratch.h"
#include "kernels/matmul.h"

namespace osprey::cpu {

namespace {

using kernels::Op;
using kernels::Weights;

int64_t total_out(Weights weights) {
  int64_t out = 0;
  for (const Tensor& w : weights) out += w.shape[0];
  return out;
}

const bf16* row(const Tensor& t, int64_t r) { return static_cast<const bf16*>(t.data) + r * t.row_stride(); }

// Weights below each other in one matrix, copied only when they are not one already.
Tensor stacked(const Queue& queue, Weights weights) {
  if (weights.size() == 1) return weights[0];
  Tensor all =
      make_tensor(nullptr, {total_out(weights), weights[0].shape[1]}, DType::bf16, weights[0].device);
  all.data = scratch(Scratch::linear_b, static_cast<size_t>(all.bytes()));
  int64_t offset = 0;
  for (const Tensor& w : weights) {
    copy_matrix(queue, all.row_range(offset, offset + w.shape[0]), w);
    offset += w.shape[0];
  }
  return all;
}

Tensor columns_of(const Tensor& t, int64_t begin, int64_t count) {
  return matrix(t).columns(begin, begin + count);
}

}  // namespace

int64_t linear_pack_bytes(Weights weights, kernels::PackFor use) {
  if (!own_product(weights[0].dtype)) return 0;
  const int64_t out = total_out(weights), in = weights[0].shape[1];
  return use == kernels::PackFor::forward ? panels_of(out) * panel_bytes(in)
                                          : panels_of(in) * panel_bytes(out);
}

void linear_pack(const Queue& queue, const kernels::LinearPack& args) {
  if (args.pack.numel() == 0) return;
  const bool forward = args.use == kernels::PackFor::forward;
  // Each weight is packed where it falls, unless it would start inside a panel or a pair.
  const int64_t unit = forward ? panel_columns : 2;
  bool aligned = true;
  for (size_t i = 0; i + 1 < args.weights.size(); ++i)
    aligned = aligned && args.weights[i].shape[0] % unit == 0;
  const Tensor one = aligned ? Tensor{} : stacked(queue, args.weights);
  const Weights parts = aligned ? args.weights : Weights(&one, 1);
  const Bf16GemmTable& table = bf16_gemm_table();
  const int64_t in = args.weights[0].shape[1], out = total_out(args.weights);
  const int64_t stride = panel_bytes(forward ? in : out);
  int64_t before = 0;
  for (const Tensor& w : parts) {
    const int64_t rows = w.shape[0];
    char* to =
        static_cast<char*>(args.pack.data) + (forward ? before / panel_columns * stride : before / 2 * 256);
    parallel_for(queue, panels_of(forward ? rows : in), 1, [&](int64_t begin, int64_t end) {
      if (forward)
        table.pack_panels_transposed(to, stride, row(w, 0), w.strides[0], in, rows, begin, end);
      else
        table.pack_panels(to, stride, row(w, 0), w.strides[0], rows, in, begin, end);
    });
    before += rows;
  }
}

void linear_forward(const Queue& queue, const kernels::LinearForward& args) {
  if (args.pack.defined() && args.pack.numel() > 0)
    return multiply_panels(queue,
                           {.c = args.y, .a = args.x, .panels = args.pack.data, .addend = args.residual});
  int64_t before = 0;
  for (const Tensor& w : args.weights) {
    const Tensor y = columns_of(args.y, before, w.shape[0]);
    if (args.residual.defined() && args.residual.data != args.y.data)
      copy_matrix(queue, y, columns_of(args.residual, before, w.shape[0]));
    kernels::matmul(queue, {.c = y,
                            .a = matrix(args.x),
                            .b = w,
                            .op_b = Op::transpose,
                            .beta = args.residual.defined() ? 1.0f : 0.0f});
    before += w.shape[0];
  }
}

void linear_dgrad(const Queue& queue, const kernels::LinearDgrad& args) {
  const Tensor& dx = args.dx.tensor;
  if (args.pack.defined() && args.pack.numel() > 0)
    return multiply_panels(
        queue, {.c = dx, .a = args.dy, .panels = args.pack.data, .addend = args.dx.add ? dx : Tensor{}});
  // Several weights add up in fp32 and are rounded once.
  const bool staged = dx.dtype == DType::bf16 && args.weights.size() > 1;
  Tensor sum = matrix(dx);
  if (staged) {
    const Shape shape{dx.rows(), dx.cols()};
    sum = make_tensor(scratch(Scratch::linear_a, static_cast<size_t>(shape.numel()) * 4), shape, DType::f32,
                      dx.device);
    if (args.dx.add) copy_matrix(queue, sum, matrix(dx));
  }
  int64_t before = 0;
  for (const Tensor& w : args.weights) {
    kernels::matmul(queue, {.c = sum,
                            .a = columns_of(args.dy, before, w.shape[0]),
                            .b = w,
                            .beta = args.dx.add || before > 0 ? 1.0f : 0.0f});
    before += w.shape[0];
  }
  if (staged) copy_matrix(queue, matrix(dx), sum);
}

void linear_wgrad(const Queue& queue, const kernels::LinearWgrad& args) {
  if (own_product(args.x.dtype)) {
    constexpr int64_t most = 2048;  // rows at a time: few passes over dW, and panels that fit L3
    const int64_t n = args.x.rows(), chunks = (n + most - 1) / most,
                  size = ((n + chunks - 1) / chunks + 1) / 2 * 2;
    for (int64_t begin = 0; begin < n; begin += size) {
      const int64_t end = std::min(n, begin + size);
      const void* panels = pack_b(queue, matrix(args.x).row_range(begin, end), Op::none);
      int64_t before = 0;
      for (size_t i = 0; i < args.outs.size(); before += args.outs[i++]) {
        if (!args.dweights[i]) continue;
        const Tensor& dw = args.dweights[i].tensor;
        multiply_panels(queue, {.c = dw,
                                .a = columns_of(args.dy, before, args.outs[i]).row_range(begin, end),
                                .op_a = Op::transpose,
                                .panels = panels,
                                .addend = args.dweights[i].add || begin > 0 ? dw : Tensor{}});
      }
    }
    return;
  }
  int64_t before = 0;
  for (size_t i = 0; i < args.outs.size(); before += args.outs[i++])
    if (args.dweights[i])
      kernels::matmul(queue, {.c = args.dweights[i].tensor,
                              .a = columns_of(args.dy, before, args.outs[i]),
                              .b = matrix(args.x),
                              .op_a = Op::transpose,
                              .beta = args.dweights[i].add ? 1.0f : 0.0f});
}

}  // namespace osprey::cpu
