#pragma once
// Numbers of packed matrices in bf16, for tensor cores: image = number * 2^bf16_image_shift(), exactly, for
// every code of the elements below with every scale, be it e8m0 or e4m3. Host and device.
//
// bf16 has 8 significant bits, and exponents from 2^-133 (its lowest denormal bit) to 2^127. E2M1 and int4
// have 2 and 3 bits, with a scale of e4m3 (4 bits) at most 7; int8 has 7. With e8m0 scales, 2^-127 to 2^127,
// numbers of E2M1 reach from 2^-128 to 1.5 * 2^129 and of int4 from 2^-129 to 2^128, hence the shifts; those
// of int8 from 2^-133 to below 2^128. (The code -128, which is never written, stands for -2^128 with the
// largest scale, which fp32 has not either.)

#include "kernels/numerics/block_codec.h"

namespace osprey {

OSPREY_HD constexpr bool has_bf16_image(Element e, ScaleType s) {
  return s == ScaleType::e8m0   ? e == Element::e2m1 || e == Element::int4 || e == Element::int8
         : s == ScaleType::e4m3 ? e == Element::e2m1 || e == Element::int4
                                : false;
}

OSPREY_HD constexpr int bf16_image_shift(Element e, ScaleType s) {
  if (s != ScaleType::e8m0) return 0;
  return e == Element::e2m1 ? -2 : e == Element::int4 ? -1 : 0;
}

/// What elements are multiplied by, from a block's scale: with the shift, and for integers with their unit.
OSPREY_HD float bf16_image_scale(Element e, ScaleType s, float scale) {
  const float unit = e == Element::int4 ? 0.25f : e == Element::int8 ? 1.0f / 64 : 1.0f;
  return scale * (unit * power_of_two(bf16_image_shift(e, s)));
}

/// An element times what bf16_image_scale() says. Bits of `code` above the element's do not matter.
OSPREY_HD float bf16_image(Element e, uint32_t code, float scale) {
  if (e == Element::e2m1) {
    // Where exponent and mantissa begin in fp32, a code stands for 2^-126 of what it is; also the denormal
    // one.
    const float magnitude = bits_float((code & 7u) << 22 | (code & 8u) << 28) * power_of_two(126);
    return magnitude * scale;
  }
  const int integer = e == Element::int4 ? static_cast<int>((code & 15u) ^ 8u) - 8
                                         : static_cast<int>((code & 255u) ^ 128u) - 128;
  return static_cast<float>(integer) * scale;
}

}  // namespace osprey
