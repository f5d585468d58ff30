#pragma once
// Our own bf16 product over threads: kernels/cpu/isa/bf16_gemm.h with views, odd lengths and transposed
// operands. Linear layers, general products and symmetric products all go through here.

#include "kernels/cpu/isa/bf16_gemm.h"
#include "kernels/matmul.h"

namespace osprey::cpu {

/// Do products of this type go through ours? Only in bf16, on CPUs with AVX512-BF16 and no AMX; on all
/// others oneDNN is the faster one. The same answer for the whole run.
bool own_product(DType dtype);

inline int64_t panels_of(int64_t columns) { return (columns + panel_columns - 1) / panel_columns; }

/// (rows, cols) whatever the rank; its row stride is strides[0].
inline Tensor matrix(const Tensor& t) { return t.row_range(0, t.rows()); }

enum class Blocks : uint8_t {
  all,
  upper  // of a square c: 64 x 64 blocks on and right of the diagonal
};

/// c = alpha op(a) B + beta addend, B (K, N) in panels.
/// Shapes: op(a) (M, K), c and addend (M, N); leading dimensions are flattened. Aliasing: addend may be c.
/// Numerics: fp32 sums, scaled and added to in fp32, rounded once. Neither the number of threads nor
/// `blocks` changes an element. Requires own_product(a.dtype).
struct PanelProduct {
  Tensor c, a;
  kernels::Op op_a = kernels::Op::none;
  const void* panels;
  Tensor addend = {};
  float alpha = 1, beta = 1;
  Blocks blocks = Blocks::all;
};
void multiply_panels(const Queue& queue, const PanelProduct& product);

/// op(b) as panels, in the calling thread's Scratch::gemm_b; valid until its next product.
/// Requires own_product(b.dtype).
const void* pack_b(const Queue& queue, const Tensor& b, kernels::Op op_b);

}  // namespace osprey::cpu
