#include "kernels/symmetric_product.h"

#include "kernels/cpu/bf16_product.h"
#include "kernels/cpu/isa/muon.h"
#include "kernels/matmul.h"

namespace osprey::cpu {

static void mirror(const Tensor& c, int64_t begin, int64_t end) {
  const int64_t m = c.shape[0];
  if (c.dtype == DType::bf16)
    muon_table().mirror_bf16(c.as<bf16>(), m, m, begin, end);
  else
    muon_table().mirror_f32(c.as<float>(), m, m, begin, end);
}

// A 512 x 512 result computes 36 of 64 blocks of 64 x 64.
static void own(const Queue& queue, const kernels::SymmetricProduct& args) {
  multiply_panels(queue, {.c = args.c,
                          .a = args.a,
                          .panels = pack_b(queue, args.a, kernels::Op::transpose),
                          .addend = args.beta == 0.0f       ? Tensor{}
                                    : args.addend.defined() ? args.addend
                                                            : args.c,
                          .alpha = args.alpha,
                          .beta = args.beta,
                          .blocks = Blocks::upper});
  const int64_t m = args.c.shape[0], blocks = panels_of(m);
  parallel_for(queue, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = (i % 2 ? blocks - 1 - i / 2 : i / 2) * panel_columns;
      mirror(args.c, first, std::min(first + panel_columns, m));
    }
  });
}

// By oneDNN: block rows of 128, small enough that the wasted part of the diagonal blocks is small (a 512 x
// 512 result computes 10 of 16 blocks), large enough for the GEMM to run near its best rate.
constexpr int64_t block = 128;

// One thread computes a whole block row: the GEMM library may cut the inner dimension over threads, and
// then sums would depend on their number.
static void block_row(const Queue& alone, const kernels::SymmetricProduct& args, int64_t begin) {
  const int64_t m = args.c.shape[0], end = std::min(begin + block, m);
  kernels::matmul(
      alone,
      {.c = args.c.row_range(begin, end).columns(begin, m),
       .a = args.a.row_range(begin, end),
       .b = args.a.row_range(begin, m),
       .op_b = kernels::Op::transpose,
       .alpha = args.alpha,
       .beta = args.beta,
       .addend = args.addend.defined() ? args.addend.row_range(begin, end).columns(begin, m) : Tensor{}});
  mirror(args.c, begin, end);
}

// Matrix `index` of a batch.
static Tensor slice(const Tensor& t, int64_t index) {
  const int64_t rows = t.shape[-2];
  return t.row_range(index * rows, (index + 1) * rows);
}

void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args) {
  const int64_t m = args.c.shape[-1], batch = m == 0 ? 0 : args.c.numel() / (m * m);
  const auto matrix_of = [&](int64_t index) {
    kernels::SymmetricProduct one = args;
    one.c = slice(args.c, index);
    one.a = slice(args.a, index);
    if (args.addend.defined()) one.addend = slice(args.addend, index);
    return one;
  };
  if (own_product(args.a.dtype)) {
    for (int64_t i = 0; i < batch; ++i) own(queue, matrix_of(i));
    return;
  }
  const int64_t blocks = (m + block - 1) / block;
  Queue alone = queue;
  alone.threads = 1;
  // Block rows get shorter: taken alternately from both ends, neighbours cost the same together.
  parallel_for(queue, batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = k % blocks;
      block_row(alone, matrix_of(k / blocks), (i % 2 ? blocks - 1 - i / 2 : i / 2) * block);
    }
  });
}

}  // namespace osprey::cpu
