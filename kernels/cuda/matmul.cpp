#include "kernels/matmul.h"

#include "kernels/cuda/product.h"

namespace osprey::cuda {

void matmul(const Queue& queue, const kernels::Matmul& args) {
  product(queue, {.d = args.c,
                  .a = args.a,
                  .b = args.b,
                  .c = args.addend,
                  .op_a = args.op_a,
                  .op_b = args.op_b,
                  .alpha = args.alpha,
                  .beta = args.beta});
}

// All products here are the library's.
void library_matmul(const Queue& queue, const kernels::Matmul& args) { cuda::matmul(queue, args); }

}  // namespace osprey::cuda
