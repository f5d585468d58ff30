#include "kernels/symmetric_product.h"

#include "kernels/cpu/isa/muon.h"
#include "kernels/matmul.h"

namespace osprey::cpu {

// Block rows of 128: small enough that the wasted part of the diagonal blocks is small (a 512 x 512
// result computes 10 of 16 blocks), large enough for the GEMM to run near its best rate.
constexpr int64_t block = 128;

// One thread computes a whole block row: the GEMM library may cut the inner dimension over threads, and
// then sums would depend on their number.
static void block_row(const Queue& alone, const kernels::SymmetricProduct& args, int64_t begin) {
  const int64_t m = args.c.shape[0], end = std::min(begin + block, m);
  kernels::matmul(alone, {.c = args.c.row_range(begin, end).columns(begin, m),
                          .a = args.a.row_range(begin, end),
                          .b = args.a.row_range(begin, m),
                          .op_b = kernels::Op::transpose,
                          .alpha = args.alpha,
                          .beta = args.beta});
  if (args.c.dtype == DType::bf16)
    muon_table().mirror_bf16(args.c.as<bf16>(), m, m, begin, end);
  else
    muon_table().mirror_f32(args.c.as<float>(), m, m, begin, end);
}

void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args) {
  const int64_t blocks = (args.c.shape[0] + block - 1) / block;
  Queue alone = queue;
  alone.threads = 1;
  // Block rows get shorter: taken alternately from both ends, neighbours cost the same together.
  parallel_for(queue, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      block_row(alone, args, (i % 2 ? blocks - 1 - i / 2 : i / 2) * block);
  });
}

}  // namespace osprey::cpu
