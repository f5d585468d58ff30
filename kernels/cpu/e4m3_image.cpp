#include "kernels/e4m3_image.h"

#include "kernels/numerics/e4m3_image.h"

namespace osprey::cpu {

void e4m3_image(const Queue& queue, const kernels::E4m3Image& args) {
  const Packed& x = args.x;
  const int64_t blocks = x.cols / x.format.block;
  parallel_for(queue, x.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint8_t* const codes = x.codes.as<uint8_t>() + r * x.codes.row_stride();
      const uint8_t* const scales = x.scales.as<uint8_t>() + r * x.scales.row_stride();
      uint8_t* const out = args.codes.as<uint8_t>() + r * args.codes.row_stride();
      const auto code = [&](int64_t i) { return codes[i / 2] >> (i % 2 * 4) & 0xfu; };
      Extent extent = no_extent;
      bool nan = false;
      for (int64_t b = 0; b < blocks; ++b) {
        uint32_t seen = 0;
        for (int64_t i = b * x.format.block; i < (b + 1) * x.format.block; ++i) seen |= 1u << (code(i) & 7u);
        nan = nan || scales[b] == e8m0_nan;
        extent = joined(extent, e2m1_extent(seen, scales[b]));
      }
      const RowImage image = row_image(extent, nan);
      args.scales.as<float>()[r] = power_of_two(image.exponent);
      args.wide.as<int32_t>()[r] = image.wide;
      for (int64_t i = 0; i < x.cols; ++i) {
        const int shift = static_cast<int>(scales[i / x.format.block]) - 127 - image.exponent;
        const uint32_t c = code(i);
        out[i] = image.wide ? uint8_t{0} : static_cast<uint8_t>(e4m3_of_e2m1(c & 7u, shift) | (c & 8u) << 4);
      }
    }
  });
}

}  // namespace osprey::cpu
