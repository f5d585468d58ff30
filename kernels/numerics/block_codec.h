#pragma once
// One element and one scale of the block formats: codes to numbers and numbers to codes. Host and device.
//
// Every device must find the same bits. So no result here depends on whether a compiler fuses a product with
// a sum: powers of two are taken from exponent fields, products that are added to something are exact, and
// sums are sums of integers. Denormal floats must not be flushed to zero, which no build of Osprey does.

#include <cstdint>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/random.h"

namespace osprey {

/// What a block's elements are. Integers stand for k * 2^(2 - bits): int8 is k / 64, int4 is k / 4, and the
/// most negative code is never written (symmetric clipping); read, it is -2.
enum class Element : uint8_t { e2m1, e2m3, e3m2, e4m3, e5m2, int4, int8 };

/// What a scale is stored as: a power of two, a small float, or fp32.
enum class ScaleType : uint8_t { e8m0, e4m3, f32 };

/// How the scale of a block follows from it; t is the exponent of the element's largest value, a the largest
/// |x|. allows() says which scales have which rules.
enum class ScaleRule : uint8_t {
  floor,  // 2^(floor(log2 a) - t): OCP MX v1.0; values above the largest element are clipped
  even,  // default. e8m0: as floor, with a first rounded to the element's mantissa; e4m3 and f32: a / largest
         // element, to the nearest of the type
  ceil,  // never clips, wastes up to one octave
  rceil,  // smallest scale of the type that does not clip; e8m0: NVIDIA's
  mse,    // e8m0 scales of e2m1 only. QuEST: 0.48707976 of the block's standard deviation (Gaussian-optimal
          // for e2m1), exponent rounded. Not below a quarter of the mean square, so that equal values live.
  four_over_six,  // e4m3 scales of e2m1 only: the better of the largest element at 6 and at 4, by squared
                  // error
  stats,          // f32 scales only: the largest element at twice the mean of |x|; clips
  lsq,            // f32 scales of rows and matrices only: a learnt step, numerics/step_size.h; clips
};

OSPREY_HD constexpr bool allows(ScaleType type, Element e, ScaleRule rule) {
  switch (rule) {
    case ScaleRule::even:
      return true;
    case ScaleRule::rceil:
      return type != ScaleType::f32;
    case ScaleRule::mse:
      return type == ScaleType::e8m0 && e == Element::e2m1;
    case ScaleRule::four_over_six:
      return type == ScaleType::e4m3 && e == Element::e2m1;
    case ScaleRule::stats:
    case ScaleRule::lsq:
      return type == ScaleType::f32;
    default:
      return type == ScaleType::e8m0;
  }
}

/// What codes are made of: exponent and mantissa of a float. An integer is one with a single exponent bit,
/// whose two binades have the same step; only its sign is told differently, by two's complement.
struct ElementLayout {
  enum Kind { integer, numbers, with_nan, with_infinity } kind;  // what its codes stand for besides numbers
  int bits, mantissa;    // sign, exponent and mantissa together; mantissa alone
  int bias;              // of the exponent
  int largest_exponent;  // of the largest value
  uint32_t largest_code;
  float largest;
};
OSPREY_HD constexpr ElementLayout element_layout(Element e) {
  switch (e) {
    case Element::e2m1:
      return {ElementLayout::numbers, 4, 1, 1, 2, 0x07, 6.0f};
    case Element::e2m3:
      return {ElementLayout::numbers, 6, 3, 1, 2, 0x1f, 7.5f};
    case Element::e3m2:
      return {ElementLayout::numbers, 6, 2, 3, 4, 0x1f, 28.0f};
    case Element::e4m3:
      return {ElementLayout::with_nan, 8, 3, 7, 8, 0x7e, 448.0f};
    case Element::e5m2:
      return {ElementLayout::with_infinity, 8, 2, 15, 15, 0x7b, 57344.0f};
    case Element::int4:
      return {ElementLayout::integer, 4, 2, 1, 0, 7, 1.75f};
    default:
      return {ElementLayout::integer, 8, 6, 1, 0, 127, 1.984375f};
  }
}

OSPREY_HD constexpr int element_bits(Element e) { return element_layout(e).bits; }

OSPREY_HD uint32_t float_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
OSPREY_HD float bits_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

inline constexpr uint32_t float_infinity = 0x7f800000u, float_nan = 0x7fc00000u;
inline constexpr float float_largest = 3.40282347e38f;

/// 2^n for n in [-126, 127].
OSPREY_HD float power_of_two(int n) { return bits_float(static_cast<uint32_t>(n + 127) << 23); }

/// Bits of |v|: they order as the magnitudes do, with infinity and NaN on top.
OSPREY_HD uint32_t magnitude_bits(float v) { return float_bits(v) & 0x7fffffffu; }

OSPREY_HD float decode_element(const ElementLayout& l, uint32_t code) {
  const uint32_t sign_bit = 1u << (l.bits - 1);
  const bool negative = (code & sign_bit) != 0, integer = l.kind == ElementLayout::integer;
  const uint32_t c = integer && negative ? 2 * sign_bit - code : integer ? code : code & (sign_bit - 1);
  const float below = static_cast<float>(c) * power_of_two(1 - l.bias - l.mantissa);
  uint32_t bits = (c << (23 - l.mantissa)) + (static_cast<uint32_t>(127 - l.bias) << 23);
  bits = c < 1u << l.mantissa ? float_bits(below) : bits;
  if (l.kind == ElementLayout::with_nan) bits = c > l.largest_code ? float_nan : bits;
  if (l.kind == ElementLayout::with_infinity)
    bits = c > l.largest_code ? float_infinity | (c & 3u) << 21 : bits;
  return bits_float(bits | (negative ? 0x80000000u : 0u));
}
OSPREY_HD float decode_element(Element e, uint32_t code) { return decode_element(element_layout(e), code); }

/// The code of a magnitude with the sign of v.
OSPREY_HD uint32_t with_sign(const ElementLayout& l, uint32_t code, float v) {
  const uint32_t bits = float_bits(v), sign_bit = 1u << (l.bits - 1);
  if (l.kind != ElementLayout::integer) return code | (bits >> (32 - l.bits) & sign_bit);
  const uint32_t all = bits & 0x80000000u ? ~0u : 0u;
  return ((code ^ all) - all) & (2 * sign_bit - 1);
}

/// Bits of |v|, of the largest element where |v| is above it.
OSPREY_HD uint32_t saturated(const ElementLayout& l, float v) {
  const uint32_t a = magnitude_bits(v), most = float_bits(l.largest);
  return a < most ? a : most;
}

/// v to the nearest code, ties to the even one; what is above the largest element becomes it. v is no NaN.
OSPREY_HD uint32_t encode_nearest(const ElementLayout& l, float v) {
  const uint32_t lowest = static_cast<uint32_t>(128 - l.bias) << 23;  // the binade of the smallest normal
  const uint32_t a = saturated(l, v), own = a & float_infinity, binade = own > lowest ? own : lowest;
  // A float 2^(23 - mantissa) binades up has the step of the element as its last bit: adding it rounds.
  const uint32_t shifter = binade + (static_cast<uint32_t>(23 - l.mantissa) << 23);
  const uint32_t steps = float_bits(bits_float(a) + bits_float(shifter)) - shifter;
  return with_sign(l, steps + ((binade - lowest) >> (23 - l.mantissa)), v);
}
OSPREY_HD uint32_t encode_nearest(Element e, float v) { return encode_nearest(element_layout(e), v); }

/// v to one of the two codes around it, to each the more often the nearer it is: with `draw` uniform in 0 ..
/// 255 the mean is v to within 2^-9 of a step, and not off to one side. Above the largest element as
/// encode_nearest().
OSPREY_HD uint32_t encode_stochastic(const ElementLayout& l, float v, uint32_t draw) {
  const uint32_t lowest = static_cast<uint32_t>(128 - l.bias) << 23;
  const uint32_t a = saturated(l, v), own = a & float_infinity, binade = own > lowest ? own : lowest;
  uint32_t m = (a & 0x7fffffu) | 0x800000u;
  uint32_t below = static_cast<uint32_t>(23 - l.mantissa) + ((binade - own) >> 23);  // bits under the step
  if (below > 31) {
    m = below < 55 ? m >> (below - 31) : 0;
    below = 31;
  }
  const uint32_t steps = (m + ((2 * draw + 1) << (below - 9))) >> below;  // below >= 17 in every layout
  return with_sign(l, steps + ((binade - lowest) >> (23 - l.mantissa)), v);
}
OSPREY_HD uint32_t encode_stochastic(Element e, float v, uint32_t draw) {
  return encode_stochastic(element_layout(e), v, draw);
}

/// Draws of 8 bits, as many as NVIDIA's conversion to e2m1 takes for a number, sixteen to a call of the
/// generator: draw `index` is draw index % 16 of group index / 16.
OSPREY_HD Philox draw_group(uint64_t seed, uint64_t stream, uint64_t group) {
  return philox(seed, stream, group);
}
OSPREY_HD uint32_t draw_of(const Philox& group, int i) {
  const uint64_t low = group.v[0] | static_cast<uint64_t>(group.v[1]) << 32,
                 high = group.v[2] | static_cast<uint64_t>(group.v[3]) << 32;
  return static_cast<uint32_t>((i < 8 ? low : high) >> (i % 8 * 8)) & 0xffu;
}

/// The signs of a rotation, bit i % 32 of word i / 32 set where element i of a group changes its sign: a
/// number of the generator that draws never reach, which count from 0.
OSPREY_HD Philox rotation_signs(uint64_t seed, uint64_t stream) { return philox(seed, stream, ~uint64_t{0}); }

OSPREY_HD float decode_e8m0(uint32_t code) {
  return bits_float(code == 255 ? float_nan : code == 0 ? 0x00400000u : code << 23);
}
/// 1 / decode_e8m0(code), exactly; NaN for NaN.
OSPREY_HD float reciprocal_e8m0(uint32_t code) {
  return bits_float(code == 255 ? float_nan : code == 254 ? 0x00400000u : (254 - code) << 23);
}
inline constexpr uint32_t e8m0_nan = 255, e4m3_nan = 0x7f;

/// Codes of e8m0 scales: none with which the largest element would overflow fp32; and for e2m1 none
/// with which its smallest, as bf16, would be lost to arithmetic that flushes denormals: 2^-125 to 2^125.
OSPREY_HD uint32_t clamp_e8m0(Element e, int code) {
  const int low = e == Element::e2m1 ? 2 : 0, high = 254 - element_layout(e).largest_exponent;
  return static_cast<uint32_t>(code < low ? low : code > high ? high : code);
}

/// The scale of a block, rules floor to rceil. `largest` are the magnitude bits of its largest element.
/// Reference: OCP MX v1.0 section 6.3 (floor); cvt.rp.satfinite.ue8m0x2.f32 of a times the fp32 reciprocal of
/// the largest element (rceil).
OSPREY_HD uint32_t e8m0_of_largest(Element e, ScaleRule rule, uint32_t largest) {
  const ElementLayout l = element_layout(e);
  const int t = l.largest_exponent;
  int code;
  if (rule == ScaleRule::rceil) {
    const uint32_t d = float_bits(bits_float(largest) * (1.0f / l.largest)), mantissa = d & 0x7fffffu;
    code = static_cast<int>(d >> 23) + (mantissa > (d < 0x800000u ? 0x400000u : 0u));
  } else if (rule == ScaleRule::ceil) {
    code = static_cast<int>(largest >> 23) + ((largest & 0x7fffffu) != 0) - t;
  } else {
    const uint32_t half_step = rule == ScaleRule::even ? 1u << (22 - l.mantissa) : 0;
    code = static_cast<int>((largest + half_step) >> 23) - t;
  }
  const uint32_t clamped = clamp_e8m0(e, code);
  return largest >= float_infinity ? e8m0_nan : largest == 0 ? 0 : clamped;
}

/// Sums over a block in units that make them integers: any order gives the same bits. A unit is 2^-20 of the
/// binade of the block's largest element, but no less than 2^-126.
OSPREY_HD int unit_exponent(uint32_t largest) {
  const int exponent = static_cast<int>(largest >> 23) - 127;
  return (exponent < -106 ? -106 : exponent) - 20;
}
OSPREY_HD int32_t in_units(float v, int exponent) {
  return static_cast<int32_t>(v * power_of_two(-exponent));
}

/// The scale of a block of e2m1 by rule mse, from the sums of its `count` elements and of their squares,
/// in units.
/// Reference: Quartet (arXiv 2505.14669), QuEST's scale; exponent rounded instead of floored, which makes
/// the error 1.6 times less.
OSPREY_HD uint32_t e8m0_of_deviation(uint32_t largest, int64_t count, int64_t sum, int64_t squares) {
  if (largest >= float_infinity) return e8m0_nan;
  if (largest == 0) return 0;
  const int64_t about_zero = count * squares, about_mean = about_zero - sum * sum;
  const int64_t n2_variance = about_mean > about_zero / 4 ? about_mean : about_zero / 4;
  // round(log2 s) = floor(log2(2 s^2) / 2)
  const double constant = 2 * 0.48707976 * 0.48707976;
  const double twice_square =
      static_cast<double>(n2_variance) * (constant / static_cast<double>(count * count));
  uint64_t bits;
  memcpy(&bits, &twice_square, 8);
  const int log2 = static_cast<int>(bits >> 52) - 1023;  // of zero: far below what the clamp lets through
  return clamp_e8m0(Element::e2m1, (log2 >> 1) + unit_exponent(largest) + 127);
}

/// What a matrix with e4m3 scales stores beside them, and the factor that it came from.
struct TensorScale {
  float up, down;  // down is 1 / up, and stored
};
/// From the magnitude bits of the matrix's largest finite element. The largest block scale becomes 448, or
/// 256 where rule four_over_six may need half as much again.
/// Reference: NVIDIA, arXiv 2509.25149; Transformer Engine's order of operations.
OSPREY_HD TensorScale tensor_scale_of(Element e, ScaleRule rule, uint32_t largest) {
  const float top = (rule == ScaleRule::four_over_six ? 256.0f : 448.0f) * element_layout(e).largest;
  const float quotient = largest == 0 ? 1.0f : top / bits_float(largest);
  const float up = quotient < float_largest ? quotient : float_largest;
  return {up, 1.0f / up};
}

/// The scale of a block: what is stored (a code, or the bits of an f32), and what its elements are multiplied
/// by to be encoded. That is NaN for a block that becomes NaN, and 0 for one of zeros or whose scale
/// underflowed to 0; either way its codes are 0.
struct BlockScale {
  uint32_t stored;
  float inverse;
};

OSPREY_HD float inverse_e4m3(uint32_t code, float tensor_scale) {
  const float scale = decode_element(Element::e4m3, code);
  const float quotient = 1.0f / (scale * tensor_scale);
  return scale == 0 ? 0.0f : quotient > float_largest ? float_largest : quotient;
}
OSPREY_HD float inverse_f32(float scale) {
  const float quotient = 1.0f / scale;
  return scale == 0 ? 0.0f : quotient > float_largest ? float_largest : quotient;
}

OSPREY_HD BlockScale block_scale_e8m0(uint32_t code, uint32_t largest) {
  return {code, largest == 0 ? 0.0f : reciprocal_e8m0(code)};
}

/// `stretch` is 1.5 to put the block's largest element of e2m1 at 4, else 1.
OSPREY_HD BlockScale block_scale_e4m3(Element e, uint32_t largest, TensorScale tensor, float stretch) {
  if (largest >= float_infinity) return {e4m3_nan, bits_float(float_nan)};
  const float scale = stretch * bits_float(largest) * (tensor.up * (1.0f / element_layout(e).largest));
  const uint32_t code = encode_nearest(Element::e4m3, scale);
  return {code, inverse_e4m3(code, tensor.down)};
}

/// Rule rceil: the smallest scale above 0 with which the largest element, as encoding multiplies it, is not
/// above the format's. Of numbers whose tensor scale is not denormal, the nearest scale is that one, or the
/// one below it. There is none above 448, so the largest element of the matrix may be above by its rounding.
OSPREY_HD BlockScale block_scale_e4m3_up(Element e, uint32_t largest, TensorScale tensor) {
  const BlockScale nearest = block_scale_e4m3(e, largest, tensor, 1.0f);
  const bool fits = nearest.stored > 0 && bits_float(largest) * nearest.inverse <= element_layout(e).largest;
  const bool stays = fits || largest == 0 || nearest.stored >= element_layout(Element::e4m3).largest_code;
  const uint32_t code = nearest.stored + (stays ? 0 : 1);
  return {code, largest >= float_infinity ? nearest.inverse : inverse_e4m3(code, tensor.down)};
}

OSPREY_HD BlockScale block_scale_f32(Element e, uint32_t largest) {
  if (largest >= float_infinity) return {float_nan, bits_float(float_nan)};
  const float scale = bits_float(largest) / element_layout(e).largest;
  return {float_bits(scale), inverse_f32(scale)};
}

/// Rule stats, from the sum of the magnitudes of the `count` elements that share the scale, in units: the
/// mean is exact to 2^-20 of the largest. Reference: StatsQ of OFQ (Liu et al., arXiv 2302.02210), whose
/// levels lie between ours, without a zero.
OSPREY_HD BlockScale block_scale_stats(Element e, uint32_t largest, int64_t count, int64_t sum) {
  if (largest >= float_infinity) return {float_nan, bits_float(float_nan)};
  const double mean = static_cast<double>(sum) / static_cast<double>(count) *
                      static_cast<double>(power_of_two(unit_exponent(largest)));
  const float scale = static_cast<float>(mean * (2.0 / static_cast<double>(element_layout(e).largest)));
  return {float_bits(scale), inverse_f32(scale)};
}

/// What a scale stands for, with what its elements were multiplied by.
OSPREY_HD float decode_scale(ScaleType type, uint32_t stored) {
  return type == ScaleType::e8m0   ? decode_e8m0(stored)
         : type == ScaleType::e4m3 ? decode_element(Element::e4m3, stored)
                                   : bits_float(stored);
}
OSPREY_HD float inverse_scale(ScaleType type, uint32_t stored, float tensor_scale) {
  return type == ScaleType::e8m0   ? reciprocal_e8m0(stored)
         : type == ScaleType::e4m3 ? inverse_e4m3(stored, tensor_scale)
                                   : inverse_f32(bits_float(stored));
}

/// The number that an element stands for. Element times e8m0 or e4m3 scale is exact; tensor_scale is 1
/// where there is none.
OSPREY_HD float scaled(float element, float scale, float tensor_scale) {
  return element * scale * tensor_scale;
}

/// What the encoded x is off by, in units: of rule four_over_six, whose sums of squares are then exact.
OSPREY_HD int64_t error_in_units(Element e, float x, BlockScale scale, float tensor_scale, int unit) {
  const float q = decode_element(e, encode_nearest(e, x * scale.inverse));
  const float whole = q * decode_element(Element::e4m3, scale.stored);
  const double off = static_cast<double>(whole) * static_cast<double>(tensor_scale) - static_cast<double>(x);
  return in_units(static_cast<float>(off), unit);
}

/// From which |x * inverse| on an element was clipped: the largest element. With an f32 scale none is but by
/// rules stats and lsq, though rounding may put the largest a little above.
OSPREY_HD float clip_limit(Element e, ScaleType type, ScaleRule rule) {
  const bool clips = type != ScaleType::f32 || rule == ScaleRule::stats || rule == ScaleRule::lsq;
  return clips ? element_layout(e).largest : float_largest;
}

}  // namespace osprey
