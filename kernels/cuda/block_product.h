#pragma once
// Which engine multiplies packed matrices on a GPU, and all of them by name, for tests and benches.

#include "kernels/block_matmul.h"
#include "kernels/cuda/workspace.h"

namespace osprey::cuda {

enum class BlockEngine : uint8_t {
  definition,  // any format, any GPU, a thread an element
  tiles,       // exact bf16 images in shared memory, of mxfp4, mxint4, mxint8, nvfp4 and nvint4; sm_80 on
  fp8,         // mxfp4 x mxfp4: E4M3 images (kernels/e4m3_image.h) through cuBLASLt, which applies the scales
               // of rows; rows without such an image by tiles. Tensor cores of sm_90
  fp8_fast,    // the same without the library's care for sums, see Gemm::fast_sums
  fp8_apart,   // as fp8, with scales applied by a kernel of ours to fp32 sums: sm_89 on
};
const char* name(BlockEngine engine);
inline constexpr BlockEngine block_engines[] = {BlockEngine::definition, BlockEngine::tiles, BlockEngine::fp8,
                                                BlockEngine::fp8_fast, BlockEngine::fp8_apart};

/// Above how many rows of a block_matmul() takes FP8. With fewer, reading b twice and writing its image would
/// cost more than the product; where the border lies was not measured.
inline constexpr int64_t most_rows_of_tiles = 64;

/// Why this GPU, its libraries or these operands cannot have that engine; null when they can.
const char* why_not(BlockEngine engine, const Queue& queue, const kernels::BlockMatmul& args);

/// The engine that block_matmul() takes: by the GPU, the formats, the rows of a and how y lies.
BlockEngine block_engine(const Queue& queue, const kernels::BlockMatmul& args);

/// block_matmul() with a given engine. Errors: throws where why_not() is not null.
void block_matmul_by(BlockEngine engine, const Queue& queue, const kernels::BlockMatmul& args);

/// Rows that tiles are to compute instead of all: those of a, and those of b, whose entry is not 0. (rows)
/// i32 on the device; `list` is room for as many and one more.
struct WideRows {
  const int32_t* wide = nullptr;
  int32_t* list = nullptr;
};

/// y (+)= factor * a b^T in exact bf16 images and fp32 sums. With `a_wide` and `b_wide`, only elements whose
/// row of a or row of b is wide; each once. How many those are is the device's own affair.
struct TileProduct {
  Accum y;
  Packed a, b;
  float factor = 1;
  WideRows a_wide = {}, b_wide = {};  // both or neither
};
void multiply_tiles(const Queue& queue, const TileProduct& args);
/// Writes list[0 ..] and, at list[rows], how many: the rows that are wide, in ascending order.
void list_wide(const Queue& queue, const WideRows& rows, int64_t count);

/// The FP8 engines. Images lie in `scratch_bytes` of the stream's scratch, in panels where they need more:
/// for tests.
void multiply_e4m3(const Queue& queue, const kernels::BlockMatmul& args, BlockEngine engine,
                   int64_t scratch_bytes = stream_scratch_bytes);
/// Whether cuBLASLt has the products of multiply_e4m3().
bool library_has_e4m3(const Queue& queue, const kernels::BlockMatmul& args, BlockEngine engine);

/// Why elements or scales of such a matrix have no exact bf16 image; null where they have.
const char* why_no_image(const BlockFormat& format);

}  // namespace osprey::cuda
