#include "kernels/symmetric_product.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void symmetric_product(const Queue& queue, const SymmetricProduct& args) {
  const char* where = "symmetric_product";
  const Shape& a = args.a.shape;
  require((a.rank == 2 || a.rank == 3) && args.a.contiguous(), where,
          "a must be a contiguous matrix, or a batch of them, got {}", args.a);
  require_shape(where, "c", args.c, a.rank == 2 ? Shape{a[0], a[0]} : Shape{a[0], a[1], a[1]});
  require(args.c.contiguous() && args.c.dtype == args.a.dtype &&
              (args.a.dtype == DType::f32 || args.a.dtype == DType::bf16),
          where, "a and c must both be f32 or both bf16, and c contiguous; got a {}, c {}", args.a, args.c);
  require(!args.addend.defined() || (args.addend.shape == args.c.shape && args.addend.dtype == args.c.dtype &&
                                     args.addend.contiguous()),
          where, "the addend must be like c, {}, got {}", args.c, args.addend);
  require(a[-1] > 0, where, "the inner dimension is empty: a is {}", args.a);
  require(args.a.device == queue.device && args.c.device == queue.device, where,
          "operands must be on the queue's device, {}", name(queue.device.kind));
  if (args.c.numel() == 0) return;
  dispatch(queue, args, cpu::symmetric_product, cuda::symmetric_product);
}

}  // namespace osprey::kernels
