#pragma once
// Which engine multiplies packed matrices on this CPU, and all of them by name, for tests and benches.

#include "kernels/block_matmul.h"

namespace osprey::cpu {

enum class BlockEngine : uint8_t {
  definition,  // any format, any CPU; what a result is, see kernels/cpu/isa/block_gemm.h
  dot,         // AVX512-VNNI, integer elements; the same bits
  few_rows,    // the same for at most 16 rows, reading b as it is packed
  bf16_tiles,  // AMX, e8m0 scales of 32 elements; exact products, fp32 sums in the tiles' order
  tiles,       // AMX, integer elements; the same bits but for e8m0 scales of 4-bit elements
};
inline constexpr BlockEngine block_engines[] = {BlockEngine::definition, BlockEngine::dot,
                                                BlockEngine::few_rows, BlockEngine::bf16_tiles,
                                                BlockEngine::tiles};
const char* name(BlockEngine engine);
inline constexpr int64_t most_few_rows = 16;

/// Why this CPU (or OSPREY_ISA), or these operands, cannot have that engine; null when they can.
const char* why_not(BlockEngine engine, const Packed& a, const Packed& b);

/// The engine that block_matmul() takes: by the CPU, the formats and the rows of a.
BlockEngine block_engine(const Packed& a, const Packed& b);

/// block_matmul() with a given engine. Errors: throws where why_not() is not null.
void block_matmul_by(BlockEngine engine, const Queue& queue, const kernels::BlockMatmul& args);

}  // namespace osprey::cpu
