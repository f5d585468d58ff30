#pragma once
// IEEE half precision (binary16) in software, for files.

#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/core/check.h"

namespace osprey {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

/// Rounds once to nearest even. Numbers of 65520 and more become infinite, NaN stays NaN.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520
  if (magnitude < 0x38800000u) {                        // subnormal: a multiple of 2^-24
    // The sum's last bit is worth 2^-24, so the FPU rounds as wanted.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

/// As above. Errors: a finite number that only infinity could stand for; `where` and `what` are for the
/// message.
inline uint16_t checked_half(float x, std::string_view where, std::string_view what) {
  const uint16_t half = float_to_half(x);
  require((half & 0x7fffu) != 0x7c00u || std::isinf(x), where,
          "{} holds {}, which F16 cannot; take BF16 or F32", what, x);
  return half;
}

}  // namespace osprey
