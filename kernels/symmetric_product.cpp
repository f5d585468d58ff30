#include "kernels/symmetric_product.h"

namespace osprey::kernels {

void symmetric_product(const Queue& queue, const SymmetricProduct& args) {
  const char* where = "symmetric_product";
  if (args.a.shape.rank != 2 || !args.a.contiguous())
    fail(where, "a must be a contiguous matrix, got {}", args.a.str());
  require_shape(where, "c", args.c, {args.a.shape[0], args.a.shape[0]});
  if (!args.c.contiguous() || args.c.dtype != args.a.dtype || args.a.dtype == DType::i32)
    fail(where, "a and c must both be f32 or both bf16, and c contiguous; got a {}, c {}", args.a.str(),
         args.c.str());
  switch (queue.device.kind) {
    case DeviceKind::cpu:
      return cpu::symmetric_product(queue, args);
    case DeviceKind::cuda:
      return cuda::symmetric_product(queue, args);
    case DeviceKind::meta:
      return;
  }
}

}  // namespace osprey::kernels
