#include "kernels/matmul.h"

#include "kernels/cpu/isa.h"

namespace osprey::kernels {

static void check(const Queue& queue, const Matmul& args) {
  const Tensor &a = args.a, &b = args.b, &c = args.c;
  const int rank = c.shape.rank;
  require((rank == 2 || rank == 3) && a.shape.rank == rank && b.shape.rank == rank, "matmul",
          "all of a, b, c must be matrices, or batches of them; a is {}, b is {}, c is {}", a, b, c);
  const bool ta = args.op_a == Op::transpose, tb = args.op_b == Op::transpose;
  const int64_t m = a.shape[ta ? -1 : -2], k = a.shape[ta ? -2 : -1];
  const int64_t kb = b.shape[tb ? -1 : -2], n = b.shape[tb ? -2 : -1];
  const bool batch = rank == 2 || (a.shape[0] == c.shape[0] && b.shape[0] == c.shape[0]);
  require(batch && k == kb && c.shape[-2] == m && c.shape[-1] == n, "matmul",
          "shapes do not fit: c {} = a {}{} b {}{}", c.shape, a.shape, ta ? "^T" : "", b.shape,
          tb ? "^T" : "");
  require(k > 0, "matmul", "the inner dimension is empty: a is {}", a);
  require(a.dtype == b.dtype && (a.dtype == DType::f32 || a.dtype == DType::bf16), "matmul",
          "a and b must both be f32 or both bf16, got {} and {}", a, b);
  require(c.dtype == DType::f32 || c.dtype == DType::bf16, "matmul", "c must be f32 or bf16, got {}", c);
  require(!args.addend.defined() || (args.addend.shape == c.shape && args.addend.dtype == c.dtype), "matmul",
          "the addend must be like c, {}, got {}", c, args.addend);
  require(a.device == queue.device && b.device == queue.device && c.device == queue.device, "matmul",
          "operands must be on the queue's device, {}", name(queue.device.kind));
}

void matmul(const Queue& queue, const Matmul& args) {
  check(queue, args);
  if (args.c.numel() == 0) return;
  switch (queue.device.kind) {
    case DeviceKind::cpu:
      return cpu::matmul(queue, args);
    case DeviceKind::cuda:
      return cuda::matmul(queue, args);
    case DeviceKind::meta:
      return;
  }
}

void library_matmul(const Queue& queue, const Matmul& args) {
  check(queue, args);
  if (args.c.numel() == 0) return;
  switch (queue.device.kind) {
    case DeviceKind::cpu:
      return cpu::library_matmul(queue, args);
    case DeviceKind::cuda:
      return cuda::library_matmul(queue, args);
    case DeviceKind::meta:
      return;
  }
}

bool bf16_gemm_is_native() { return cpu::has_bf16_instructions(); }

}  // namespace osprey::kernels
