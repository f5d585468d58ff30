// Linear layers on a GPU: products of the library, without packs. Parameters of one layer mostly lie one
// after the other, so that the weights of one product are one matrix already; then they are multiplied at
// once.

#include "kernels/linear.h"

#include "kernels/cuda/product.h"
#include "kernels/cuda/stream.h"

namespace osprey::cuda {

namespace {

using kernels::Op;

bool adjacent(const Tensor& above, const Tensor& below) {
  const int64_t bytes = above.shape[0] * above.strides[0] * size_bytes(above.dtype);
  return above.strides[0] == below.strides[0] && static_cast<char*>(above.data) + bytes == below.data;
}

/// `first` and what lies directly below it, as one matrix.
Tensor taller(const Tensor& first, int64_t rows) {
  Tensor t = first;
  t.shape = {rows, first.shape[1]};
  return t;
}

/// Calls body(weight, first row of the stack) for each maximal matrix that the weights form in memory; how
/// often.
template <class Body>
int for_each_matrix(kernels::Weights weights, const Body& body) {
  int count = 0;
  int64_t before = 0;
  for (size_t i = 0; i < weights.size(); ++count) {
    const Tensor& first = weights[i];
    int64_t rows = first.shape[0];
    while (++i < weights.size() && adjacent(weights[i - 1], weights[i])) rows += weights[i].shape[0];
    body(taller(first, rows), before);
    before += rows;
  }
  return count;
}

Tensor columns_of(const Tensor& t, int64_t begin, int64_t count) { return t.columns(begin, begin + count); }

void add_products(const Queue& queue, const Tensor& dx, const Tensor& dy, kernels::Weights weights,
                  bool add) {
  for_each_matrix(weights, [&](const Tensor& w, int64_t before) {
    product(
        queue,
        {.d = dx, .a = columns_of(dy, before, w.shape[0]), .b = w, .beta = add || before > 0 ? 1.0f : 0.0f});
  });
}

}  // namespace

int64_t linear_pack_bytes(kernels::Weights, kernels::PackFor) { return 0; }

void linear_pack(const Queue&, const kernels::LinearPack&) {
  fail("linear", "a GPU reads weights as they are; linear_pack_bytes() is 0 there");
}

void linear_forward(const Queue& queue, const kernels::LinearForward& args) {
  const Tensor x = matrix(args.x);
  for_each_matrix(args.weights, [&](const Tensor& w, int64_t before) {
    const bool residual = args.residual.defined();
    product(queue, {.d = columns_of(args.y, before, w.shape[0]),
                    .a = x,
                    .b = w,
                    .c = residual ? columns_of(args.residual, before, w.shape[0]) : Tensor{},
                    .op_b = Op::transpose,
                    .beta = residual ? 1.0f : 0.0f});
  });
}

void linear_dgrad(const Queue& queue, const kernels::LinearDgrad& args) {
  const Tensor dx = matrix(args.dx.tensor), dy = matrix(args.dy);
  const int products = for_each_matrix(args.weights, [](const Tensor&, int64_t) {});
  if (dx.dtype == DType::f32 || products == 1) return add_products(queue, dx, dy, args.weights, args.dx.add);
  // Several products add up in fp32 and are rounded once.
  const int64_t rows = dx.rows(), cols = dx.cols();
  const int64_t most = std::min(rows, scratch_rows(cols));
  void* memory = stream_of(queue).scratch(most * cols * 4);
  for (int64_t begin = 0; begin < rows; begin += most) {
    const int64_t end = std::min(rows, begin + most);
    const Tensor sum = make_tensor(memory, {end - begin, cols}, DType::f32, dx.device);
    add_products(queue, sum, dy.row_range(begin, end), args.weights, false);
    const Tensor part = dx.row_range(begin, end);
    add_rounded(queue, {.d = part, .sum = sum, .c = part, .beta = args.dx.add ? 1.0f : 0.0f});
  }
}

void linear_wgrad(const Queue& queue, const kernels::LinearWgrad& args) {
  const Tensor x = matrix(args.x);
  int64_t before = 0;
  for (size_t i = 0; i < args.outs.size();) {
    const Accum& first = args.dweights[i];
    int64_t rows = args.outs[i];
    const auto goes_on = [&](const Accum& next) {
      return first && next && next.add == first.add && adjacent(args.dweights[i - 1].tensor, next.tensor);
    };
    while (++i < args.outs.size() && goes_on(args.dweights[i])) rows += args.outs[i];
    if (first)
      product(queue, {.d = taller(first.tensor, rows),
                      .a = columns_of(args.dy, before, rows),
                      .b = x,
                      .op_a = Op::transpose,
                      .beta = first.add ? 1.0f : 0.0f});
    before += rows;
  }
}

}  // namespace osprey::cuda
