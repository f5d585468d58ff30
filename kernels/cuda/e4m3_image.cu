#include "kernels/e4m3_image.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/cuda/sixteen.h"
#include "kernels/numerics/e4m3_image.h"

namespace osprey::cuda {

namespace {

constexpr int warps = 4, block = 32, block_bytes = 16;

// Eight bytes a member.
struct Image {
  const uint8_t *codes, *scales;
  uint8_t* out;
  float* out_scales;
  int32_t* wide;
  int64_t codes_stride, scales_stride, out_stride, rows, blocks;
  int64_t whole_codes, whole_out;  // may 16 bytes be moved at once?
};

/// A warp takes a row, a lane every 32nd block of it: once for what the row takes up, and once more, from the
/// nearest cache, for its image.
__global__ void __launch_bounds__(warps* warp_size) e4m3_image_kernel(const Image a) {
  const int64_t row = blockIdx.x * int64_t{warps} + threadIdx.x / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  if (row >= a.rows) return;
  const uint8_t* const codes = a.codes + row * a.codes_stride;
  const uint8_t* const scales = a.scales + row * a.scales_stride;
  Extent extent = no_extent;
  int nan = 0;
  for (int64_t b = lane; b < a.blocks; b += warp_size) {
    const Sixteen c = load_sixteen(codes + b * block_bytes, a.whole_codes);
    uint32_t seen = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) seen |= e2m1_magnitudes(c.word[i]);
    const uint32_t scale = scales[b];
    nan |= scale == e8m0_nan;
    extent = joined(extent, e2m1_extent(seen, scale));
  }
  for (int other = warp_size / 2; other > 0; other /= 2) {
    extent = joined(extent, {__shfl_xor_sync(full_warp, extent.top, other),
                             __shfl_xor_sync(full_warp, extent.low, other)});
    nan |= __shfl_xor_sync(full_warp, nan, other);
  }
  const RowImage image = row_image(extent, nan != 0);
  if (lane == 0) {
    a.out_scales[row] = power_of_two(image.exponent);
    a.wide[row] = image.wide ? 1 : 0;
  }
  uint8_t* const out = a.out + row * a.out_stride;
  for (int64_t b = lane; b < a.blocks; b += warp_size) {
    Sixteen c = load_sixteen(codes + b * block_bytes, a.whole_codes);
    if (image.wide) c = {};
    const E4m3Table table = e4m3_table(scales[b], image.exponent);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Sixteen e;
#pragma unroll
      for (int i = 0; i < 4; ++i) e.word[i] = e4m3_four(table, c.word[2 * half + i / 2] >> (i % 2 * 16));
      store_sixteen(out + b * block + 16 * half, a.whole_out, e);
    }
  }
}

}  // namespace

void e4m3_image(const Queue& queue, const kernels::E4m3Image& args) {
  const Packed& x = args.x;
  const Image image{.codes = x.codes.as<uint8_t>(),
                    .scales = x.scales.as<uint8_t>(),
                    .out = args.codes.as<uint8_t>(),
                    .out_scales = args.scales.as<float>(),
                    .wide = args.wide.as<int32_t>(),
                    .codes_stride = x.codes.row_stride(),
                    .scales_stride = x.scales.row_stride(),
                    .out_stride = args.codes.row_stride(),
                    .rows = x.rows,
                    .blocks = x.cols / block,
                    .whole_codes = whole_sixteens(x.codes.data, x.codes.row_stride()),
                    .whole_out = whole_sixteens(args.codes.data, args.codes.row_stride())};
  launch("e4m3_image", queue,
         {.blocks = static_cast<unsigned>((x.rows + warps - 1) / warps), .threads = warps * warp_size},
         e4m3_image_kernel, image);
}

}  // namespace osprey::cuda
