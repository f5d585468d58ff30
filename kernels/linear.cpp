#include "kernels/linear.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

bool is_float(const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; }

int64_t check_weights(const Queue& queue, Weights weights) {
  require(!weights.empty(), "linear", "no weights");
  int64_t out = 0;
  for (const Tensor& w : weights) {
    require(
        w.shape.rank == 2 && w.shape[1] == weights[0].shape[1] && w.dtype == weights[0].dtype && is_float(w),
        "linear", "weights must be matrices of one width and float type, got {} beside {}", w, weights[0]);
    require(w.device == queue.device, "linear", "weight {} is not on the queue's device", w);
    out += w.shape[0];
  }
  require(out > 0 && weights[0].shape[1] > 0, "linear", "weight {} is empty", weights[0]);
  return out;
}

void check_activation(const Queue& queue, const char* what, const Tensor& t, int64_t rows, int64_t cols) {
  require(t.rows() == rows && t.cols() == cols, "linear", "{} must be ({}, {}), got {}", what, rows, cols, t);
  require(is_float(t) && t.device == queue.device, "linear",
          "{} must be f32 or bf16 on the queue's device, got {}", what, t);
}

void check_pack(const Queue& queue, const Tensor& pack, Weights weights, PackFor use) {
  if (!pack.defined()) return;
  const int64_t bytes = linear_pack_bytes(queue, weights, use);
  require(pack.bytes() == bytes && pack.dtype == DType::bf16 && pack.contiguous(), "linear",
          "pack must be bf16 ({}), got {}", bytes / 2, pack);
}

}  // namespace

int64_t linear_pack_bytes(const Queue& queue, Weights weights, PackFor use) {
  check_weights(queue, weights);
  return queue.target() == DeviceKind::cuda ? cuda::linear_pack_bytes(weights, use)
                                            : cpu::linear_pack_bytes(weights, use);
}

void linear_pack(const Queue& queue, const LinearPack& args) {
  check_weights(queue, args.weights);
  require(args.pack.defined(), "linear", "nowhere to pack to");
  check_pack(queue, args.pack, args.weights, args.use);
  dispatch(queue, args, cpu::linear_pack, cuda::linear_pack);
}

void linear_forward(const Queue& queue, const LinearForward& args) {
  const int64_t out = check_weights(queue, args.weights), rows = args.x.rows();
  check_activation(queue, "x", args.x, rows, args.weights[0].shape[1]);
  check_activation(queue, "y", args.y, rows, out);
  require(args.x.dtype == args.weights[0].dtype, "linear", "x {} and weight {} must have one dtype", args.x,
          args.weights[0]);
  if (args.residual.defined()) {
    check_activation(queue, "residual", args.residual, rows, out);
    require(args.residual.dtype == args.y.dtype, "linear", "residual {} must have the dtype of y {}",
            args.residual, args.y);
  }
  check_pack(queue, args.pack, args.weights, PackFor::forward);
  if (rows == 0) return;
  dispatch(queue, args, cpu::linear_forward, cuda::linear_forward);
}

void linear_dgrad(const Queue& queue, const LinearDgrad& args) {
  if (!args.dx) return;
  const int64_t out = check_weights(queue, args.weights), rows = args.dy.rows();
  check_activation(queue, "dy", args.dy, rows, out);
  check_activation(queue, "dx", args.dx.tensor, rows, args.weights[0].shape[1]);
  require(args.dy.dtype == args.weights[0].dtype, "linear", "dy {} and weight {} must have one dtype",
          args.dy, args.weights[0]);
  check_pack(queue, args.pack, args.weights, PackFor::dgrad);
  if (rows == 0) return;
  dispatch(queue, args, cpu::linear_dgrad, cuda::linear_dgrad);
}

void linear_wgrad(const Queue& queue, const LinearWgrad& args) {
  require(args.outs.size() == args.dweights.size() && !args.outs.empty(), "linear",
          "{} gradients for {} weights", args.dweights.size(), args.outs.size());
  int64_t out = 0;
  for (size_t i = 0; i < args.outs.size(); ++i) {
    out += args.outs[i];
    if (!args.dweights[i]) continue;
    const Tensor& dw = args.dweights[i].tensor;
    require_shape("linear", "dweight", dw, {args.outs[i], args.x.cols()});
    require(dw.dtype == DType::f32 && dw.device == queue.device, "linear",
            "dweight must be f32 on the queue's device, got {}", dw);
  }
  check_activation(queue, "x", args.x, args.x.rows(), args.x.cols());
  check_activation(queue, "dy", args.dy, args.x.rows(), out);
  require(args.x.dtype == args.dy.dtype, "linear", "x {} and dy {} must have one dtype", args.x, args.dy);
  require(args.x.rows() > 0, "linear", "no rows to sum over: x is {}", args.x);
  dispatch(queue, args, cpu::linear_wgrad, cuda::linear_wgrad);
}

}  // namespace osprey::kernels
