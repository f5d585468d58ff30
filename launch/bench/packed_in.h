#pragma once
#include "framework/memory/arena.h"
#include "kernels/block_format.h"

namespace osprey::bench {

/// An undefined packed matrix.
inline Packed packed_in(Arena& memory, const BlockFormat& format, int64_t rows, int64_t cols) {
  const PackedShapes s = packed_shapes(format, rows, cols, "a bench's matrix");
  Packed p{.format = format,
           .rows = rows,
           .cols = cols,
           .codes = memory.alloc(s.codes, DType::u8),
           .scales = memory.alloc(s.scales, s.scale_dtype)};
  if (s.has_tensor_scale) p.tensor_scale = memory.alloc({1}, DType::f32);
  return p;
}

}  // namespace osprey::bench
