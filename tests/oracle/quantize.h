#pragma once
// Block formats by enumeration and in double precision; shares no arithmetic with kernels/numerics.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/block_format.h"

namespace osprey::oracle {

/// The value of every code, from the definition of the format; NaN and infinity where the code is one.
inline std::vector<double> enumerate_codes(Element e) {
  struct Float {
    int exponent_bits, mantissa_bits, bias;
  };
  const auto floats = [](Float f) {
    std::vector<double> v;
    for (int sign : {1, -1})
      for (int exponent = 0; exponent < 1 << f.exponent_bits; ++exponent)
        for (int mantissa = 0; mantissa < 1 << f.mantissa_bits; ++mantissa) {
          const double fraction = std::ldexp(mantissa, -f.mantissa_bits);
          v.push_back(sign * (exponent == 0 ? std::ldexp(fraction, 1 - f.bias)
                                            : std::ldexp(1 + fraction, exponent - f.bias)));
        }
    return v;
  };
  const auto integers = [](int bits) {
    std::vector<double> v;
    for (int code = 0; code < 1 << bits; ++code)
      v.push_back(std::ldexp(code < 1 << (bits - 1) ? code : code - (1 << bits), 2 - bits));
    return v;
  };
  std::vector<double> v;
  switch (e) {
    case Element::e2m1:
      return floats({2, 1, 1});
    case Element::e2m3:
      return floats({2, 3, 1});
    case Element::e3m2:
      return floats({3, 2, 3});
    case Element::e4m3:
      v = floats({4, 3, 7});
      v[0x7f] = v[0xff] = NAN;
      return v;
    case Element::e5m2:
      v = floats({5, 2, 15});
      v[0x7c] = INFINITY;
      v[0xfc] = -INFINITY;
      for (size_t code : {0x7d, 0x7e, 0x7f}) v[code] = v[code + 0x80] = NAN;
      return v;
    case Element::int4:
      return integers(4);
    case Element::int8:
      return integers(8);
  }
  return v;
}

inline const std::vector<double>& code_values(Element e) {
  static const std::vector<std::vector<double>> all = [] {
    std::vector<std::vector<double>> v;
    for (int i = 0; i <= static_cast<int>(Element::int8); ++i)
      v.push_back(enumerate_codes(static_cast<Element>(i)));
    return v;
  }();
  return all[static_cast<size_t>(e)];
}

inline bool is_integer(Element e) { return e == Element::int4 || e == Element::int8; }

/// Codes of nonnegative finite values in ascending order, without the most negative integer's magnitude.
inline std::vector<uint32_t> positive_codes(Element e) {
  std::vector<uint32_t> codes;
  const std::vector<double>& v = code_values(e);
  for (uint32_t code = 0; code < v.size() / 2; ++code)
    if (std::isfinite(v[code])) codes.push_back(code);
  return codes;
}
inline double largest(Element e) {
  double most = 0;
  const std::vector<double>& v = code_values(e);
  for (size_t code = 0; code < v.size() / 2; ++code)
    if (std::isfinite(v[code])) most = std::max(most, v[code]);
  return most;
}
/// Exponent of the largest value.
inline int largest_exponent(Element e) { return std::ilogb(largest(e)); }

/// The code of -value(code).
inline uint32_t negated(Element e, uint32_t code) {
  const uint32_t count = 1u << element_bits(e);
  return is_integer(e) ? (count - code) % count : code | count / 2;
}

/// Nearest by search through all codes; of two equally near the one with an even code; saturating.
inline uint32_t nearest_code(Element e, double v) {
  const std::vector<double>& table = code_values(e);
  const double a = std::min(std::abs(v), largest(e));
  uint32_t best = 0;
  for (uint32_t code = 0; code < table.size() / 2; ++code) {
    if (!std::isfinite(table[code])) break;
    const double gain = std::abs(table[best] - a) - std::abs(table[code] - a);
    if (gain > 0 || (gain == 0 && code % 2 == 0)) best = code;
  }
  return std::signbit(v) ? negated(e, best) : best;
}

/// The exponent of an e8m0 scale before it is clamped, of the fp32 number a > 0. `rceil` follows the
/// hardware: the quotient by the largest element is a product in fp32.
inline int scale_exponent(Element e, ScaleRule rule, float a) {
  const int t = largest_exponent(e);
  int exponent;
  const double fraction = std::frexp(static_cast<double>(a), &exponent) * 2;  // in [1, 2)
  --exponent;
  // The step of the binade that holds the largest value, relative to that binade.
  const std::vector<uint32_t> codes = positive_codes(e);
  const double mantissa_step =
      std::ldexp(largest(e) - code_values(e)[codes[codes.size() - 2]], -largest_exponent(e));
  switch (rule) {
    case ScaleRule::even:
      if (exponent < -126)  // what is added to a denormal's bits is half a step of the lowest binade
        return -127 + (std::ldexp(static_cast<double>(a), 126) + mantissa_step / 2 >= 1) - t;
      return exponent + (fraction + mantissa_step / 2 >= 2) - t;
    case ScaleRule::ceil:
      if (exponent < -126) return -126 - t;  // the exponent field of denormals is 0, their mantissa is not
      return exponent + (fraction > 1) - t;
    case ScaleRule::rceil: {
      const float quotient = a * static_cast<float>(1 / largest(e));
      if (quotient == 0) return -1000;
      const double f = std::frexp(static_cast<double>(quotient), &exponent);
      return f > 0.5 ? exponent : exponent - 1;
    }
    default:
      return exponent - t;
  }
}

/// The e8m0 code: 2^-127 to where the largest element is still finite in fp32; for e2m1 from 2^-125 on.
inline uint32_t scale_code(Element e, ScaleRule rule, float a) {
  if (std::isnan(a) || std::isinf(a)) return 255;
  if (a == 0) return 0;
  const int low = e == Element::e2m1 ? -125 : -127, high = 127 - largest_exponent(e);
  return static_cast<uint32_t>(std::min(std::max(scale_exponent(e, rule, a), low), high) + 127);
}

/// The scale by rule stats of elements that share it: twice the mean of |x| at the largest element.
inline double stats_scale(Element e, const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += std::abs(v);
  return 2 * sum / static_cast<double>(x.size()) / largest(e);
}

/// x times signs, times Sylvester's matrix / sqrt(size), for groups of `size`; signs are 1 or -1.
inline std::vector<double> rotated(const std::vector<double>& x, const std::vector<int>& signs) {
  const size_t size = signs.size();
  std::vector<double> y(x.size(), 0.0);
  for (size_t at = 0; at < x.size(); at += size)
    for (size_t j = 0; j < size; ++j) {
      for (size_t i = 0; i < size; ++i)
        y[at + j] += x[at + i] * signs[i] * (__builtin_popcountll(i & j) % 2 ? -1 : 1);
      y[at + j] /= std::sqrt(static_cast<double>(size));
    }
  return y;
}

}  // namespace osprey::oracle
