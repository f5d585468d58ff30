#pragma once
// What a rank does with the contributions that the others sent it.

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// data = row 0 + row 1 + ... of parts. Row `own` is not read: in its place stands what data holds before,
/// rounded to the dtype of parts.
/// Shapes: data (n), parts (R, n) whose rows may be strided; of one dtype, f32, i32 or f64, or f32 and
/// bf16.
/// Numerics: added in the order of rows in fp32 (i32 wraps, f64 in double); the sum is not rounded again.
struct ReduceParts {
  Tensor data, parts;
  int own = 0;
};
void reduce_parts(const Queue& queue, const ReduceParts& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void reduce_parts(const Queue& queue, const kernels::ReduceParts& args);
}
namespace osprey::cuda {
void reduce_parts(const Queue& queue, const kernels::ReduceParts& args);
}
