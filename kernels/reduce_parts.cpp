#include "kernels/reduce_parts.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void reduce_parts(const Queue& queue, const ReduceParts& args) {
  const Tensor &data = args.data, &parts = args.parts;
  require(data.shape.rank == 1 && data.contiguous(), "reduce_parts", "data must be (n), got {}", data);
  require(parts.shape.rank == 2 && parts.cols() == data.numel() && parts.rows() > 0, "reduce_parts",
          "parts must be (R, {}), got {}", data.numel(), parts);
  const bool same = data.dtype == parts.dtype && data.dtype != DType::bf16;
  require(same || (data.dtype == DType::f32 && parts.dtype == DType::bf16), "reduce_parts",
          "adds f32, i32 or f64 parts to data of their dtype, or bf16 parts to f32 data; got {} and {}", data,
          parts);
  require(0 <= args.own && args.own < parts.rows(), "reduce_parts", "own must be a row of {}, got {}", parts,
          args.own);
  dispatch(queue, args, cpu::reduce_parts, cuda::reduce_parts);
}

}  // namespace osprey::kernels
