#include "kernels/cpu/isa/quantize.h"

#include "kernels/cpu/isa/hadamard.h"
#include "kernels/cpu/isa/transpose.h"
#include "kernels/cpu/isa/vec.h"
#include "kernels/numerics/step_size.h"

namespace osprey::cpu::OSPREY_ISA {
namespace {

constexpr int64_t step = 16;  // inner loops have this length, so that they become one vector of any set

template <class T>
void load_run(float* __restrict v, const T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = to_float(x[i]);
}

/// Through 32 rows of x as floats.
template <class T>
void load_columns(float* v, int64_t v_stride, const T* x, int64_t x_stride, int64_t rows, int64_t cols) {
  constexpr int64_t tile = 32;
  alignas(64) float t[tile * tile];
  for (int64_t r0 = 0; r0 < rows; r0 += tile) {
    const int64_t high = r0 + tile < rows ? tile : rows - r0;
    for (int64_t c0 = 0; c0 < cols; c0 += tile) {
      const int64_t wide = c0 + tile < cols ? tile : cols - c0;
      for (int64_t r = 0; r < high; ++r) {
        const T* row = x + (r0 + r) * x_stride + c0;
        // What the caller wants next; rows lie too far apart for the hardware to foresee it.
        __builtin_prefetch(row + tile);
        load_run(t + r * tile, row, wide);
      }
      transpose(v + c0 * v_stride + r0, v_stride, t, tile, static_cast<int>(high), static_cast<int>(wide));
    }
  }
}

template <class T>
void store_run(T* __restrict y, const float* __restrict v, int64_t n, int add) {
  if (add)
    for (int64_t i = 0; i < n; ++i) y[i] = Convert<T>::from(to_float(y[i]) + v[i]);
  else
    for (int64_t i = 0; i < n; ++i) y[i] = Convert<T>::from(v[i]);
}

void multiply(float* v, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) v[i] *= factor;
}

template <int size>
void rotate_groups(const RotateRun& a) {
  constexpr int vectors = size / lanes;
  const auto signs = [&](int i) { return load(reinterpret_cast<const int32_t*>(a.signs) + i * lanes); };
  for (int64_t at = 0; at < a.n; at += size) {
    Vec x[vectors];
    for (int i = 0; i < vectors; ++i) {
      x[i] = load(a.v + at + i * lanes);
      if (!a.transposed) x[i] = (Vec)((IVec)x[i] ^ signs(i));
    }
    hadamard<size>(x);
    for (int i = 0; i < vectors; ++i) {
      Vec y = x[i] * splat(a.factor);
      if (a.transposed) y = (Vec)((IVec)y ^ signs(i));
      store(a.v + at + i * lanes, y);
    }
  }
}

void rotate(const RotateRun& a) {
  switch (a.size) {
    case 16:
      return rotate_groups<16>(a);
    case 32:
      return rotate_groups<32>(a);
    case 64:
      return rotate_groups<64>(a);
    default:
      return rotate_groups<128>(a);
  }
}

void keep(float* v, const uint8_t* mask, int64_t n) {
  for (int64_t i = 0; i < n; i += 8) {
    const uint32_t bits = mask[i / 8];
#pragma omp simd
    for (uint32_t k = 0; k < 8; ++k) v[i + k] = bits_float(float_bits(v[i + k]) & (0u - (bits >> k & 1u)));
  }
}

OSPREY_INLINE Vec magnitude(Vec v) { return (Vec)((IVec)v & splat(int32_t{0x7fffffff})); }

/// Bits of magnitudes order as integers do.
struct LargestOf {
  OSPREY_INLINE Vec of(Vec a, Vec b) {
    const IVec x = (IVec)a, y = (IVec)b;
    return (Vec)(x > y ? x : y);
  }
  OSPREY_INLINE float lane(Vec v) {
    IVec bits = (IVec)v;
    int32_t most = 0;
    for (int i = 0; i < lanes; ++i) most = bits[i] > most ? bits[i] : most;
    return bits_float(static_cast<uint32_t>(most));
  }
};

/// largest[b] = the largest lane of most_of(b), for 16 blocks at once.
template <class MostOf>
OSPREY_INLINE void reduce_blocks(uint32_t* largest, int64_t count, const MostOf& most_of) {
  for (int64_t b = 0; b < count; b += 16) {
    const int64_t here = count - b < 16 ? count - b : 16;
    Vec most[16];
    for (int64_t i = 0; i < 16; ++i) most[i] = most_of(b + (i < here ? i : 0));  // the first stands in
    reduce_rows<LargestOf>(reinterpret_cast<float*>(largest + b), most);
  }
}

void largest_of_blocks(uint32_t* largest, const float* v, int64_t n, int64_t block) {
  if (block % step == 0 && n % block == 0)
    return reduce_blocks(largest, n / block, [=](int64_t b) {
      Vec most = magnitude(load(v + b * block));
      for (int64_t k = lanes; k < block; k += lanes)
        most = LargestOf::of(most, magnitude(load(v + b * block + k)));
      return most;
    });
  uint32_t most = 0;  // one run of any length
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t m = magnitude_bits(v[i]);
    most = m > most ? m : most;
  }
  *largest = most;
}

uint32_t largest_finite(const bf16* x, int64_t n) {
  uint16_t most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = x[i].bits & 0x7fffu, finite = bits < 0x7f80u ? bits : 0;
    most = finite > most ? finite : most;
  }
  return static_cast<uint32_t>(most) << 16;
}

int64_t magnitudes(const float* v, int64_t n, int unit) {
  const float up = power_of_two(-unit);
  int32_t sum = 0;  // of at most 1024 numbers below 2^21
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(bits_float(magnitude_bits(v[i])) * up);
  return sum;
}

/// In sixteen sums, whatever the registers hold: every instruction set finds the same.
template <Element e>
OSPREY_INLINE double slope_sum_of(const float* dy, const float* x, int64_t n, float inverse) {
  double sums[16] = {};
  for (int64_t at = 0; at < n; at += 16) {
    const int64_t here = n - at < 16 ? n - at : 16;
    for (int64_t i = 0; i < here; ++i)
      sums[i] += static_cast<double>(dy[at + i]) * static_cast<double>(slope_by_step(e, x[at + i] * inverse));
  }
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}
double slope_sum(const float* dy, const float* x, int64_t n, float inverse, Element e) {
  return e == Element::int4 ? slope_sum_of<Element::int4>(dy, x, n, inverse)
                            : slope_sum_of<Element::int8>(dy, x, n, inverse);
}

template <Element e, ScaleRule rule>
OSPREY_INLINE void power_scales_by(uint8_t* __restrict codes, float* __restrict inverse,
                                   const uint32_t* __restrict largest, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = e8m0_of_largest(e, rule, largest[i]);
    inverse[i] = block_scale_e8m0(code, largest[i]).inverse;
    codes[i] = static_cast<uint8_t>(code);
  }
}
template <Element e>
void power_scales(uint8_t* codes, float* inverse, const uint32_t* largest, int64_t count, ScaleRule rule) {
  switch (rule) {
    case ScaleRule::floor:
      return power_scales_by<e, ScaleRule::floor>(codes, inverse, largest, count);
    case ScaleRule::ceil:
      return power_scales_by<e, ScaleRule::ceil>(codes, inverse, largest, count);
    case ScaleRule::rceil:
      return power_scales_by<e, ScaleRule::rceil>(codes, inverse, largest, count);
    default:
      return power_scales_by<e, ScaleRule::even>(codes, inverse, largest, count);
  }
}

void deviation_scales(uint8_t* codes, float* inverse, const uint32_t* largest, const float* v, int64_t count,
                      int64_t block) {
  for (int64_t b = 0; b < count; ++b) {
    int32_t sum = 0;
    int64_t squares = 0;
    if (largest[b] < float_infinity) {
      const float up = power_of_two(-unit_exponent(largest[b]));
      const float* p = v + b * block;
#pragma omp simd reduction(+ : sum, squares)
      for (int64_t i = 0; i < block; ++i) {
        const int32_t k = static_cast<int32_t>(p[i] * up);
        sum += k;
        squares += static_cast<int64_t>(k) * k;
      }
    }
    const uint32_t code = e8m0_of_deviation(largest[b], block, sum, squares);
    codes[b] = static_cast<uint8_t>(code);
    inverse[b] = block_scale_e8m0(code, largest[b]).inverse;
  }
}

int64_t error_difference(const float* v, int64_t n, BlockScale a, BlockScale b, float tensor_scale,
                         int unit) {
  int64_t difference = 0;
#pragma omp simd reduction(+ : difference)
  for (int64_t i = 0; i < n; ++i) {
    const int64_t x = error_in_units(Element::e2m1, v[i], a, tensor_scale, unit),
                  y = error_in_units(Element::e2m1, v[i], b, tensor_scale, unit);
    difference += x * x - y * y;
  }
  return difference;
}

/// 16 codes, one in a word, to their places: 2 * bits bytes.
template <int bits>
OSPREY_INLINE void pack_step(uint8_t* out, const int32_t* words) {
  if constexpr (bits == 8) {
    for (int64_t k = 0; k < step; k += lanes) store_bytes(out + k, load(words + k));
  } else if constexpr (bits == 4) {
    for (int64_t k = 0; k < step; k += lanes) {
      const U64Vec two = (U64Vec)load(words + k);
      store_bytes(out + k / 2, two | (two >> 28));
    }
  } else {
    static_assert(bits == 6);
    for (int64_t k = 0; k < step; k += 4, out += 3) {
      const int32_t four = words[k] | words[k + 1] << 6 | words[k + 2] << 12 | words[k + 3] << 18;
      out[0] = static_cast<uint8_t>(four);
      out[1] = static_cast<uint8_t>(four >> 8);
      out[2] = static_cast<uint8_t>(four >> 16);
    }
  }
}

template <int bits>
OSPREY_INLINE void unpack(uint8_t* __restrict codes, const uint8_t* __restrict in, int64_t n) {
  if constexpr (bits == 8) {
    memcpy(codes, in, static_cast<size_t>(n));
  } else if constexpr (bits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      const uint16_t two = (in[i] | in[i] << 4) & 0x0f0f;
      memcpy(codes + 2 * i, &two, 2);
    }
  } else {
    for (int64_t i = 0; i < n / 4; ++i) {
      const uint32_t word =
          in[3 * i] | static_cast<uint32_t>(in[3 * i + 1]) << 8 | static_cast<uint32_t>(in[3 * i + 2]) << 16;
      for (int j = 0; j < 4; ++j) codes[4 * i + j] = word >> (6 * j) & 63u;
    }
  }
}

constexpr int groups = lanes / 2;  // of draws, made together

/// philox() for `groups` neighbouring counters: to[16 g + i] is draw i of group first + g.
OSPREY_INLINE void draw_groups(uint8_t* to, uint64_t seed, uint64_t stream, uint64_t first) {
  // A 64-bit lane holds a 32-bit word; what is left above it of a product reaches no later product.
  U64Vec counter, zero{};
  for (int g = 0; g < groups; ++g) counter[g] = first + static_cast<uint64_t>(g);
  U64Vec c0 = counter, c1 = counter >> 32, c2 = zero + (stream & 0xffffffffu), c3 = zero + (stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const U64Vec p0 = multiply_low(c0, zero + 0xD2511F53u), p1 = multiply_low(c2, zero + 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ (zero + k0);
    c2 = (p0 >> 32) ^ c3 ^ (zero + k1);
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const U64Vec low = (c0 & 0xffffffffu) | c1 << 32, high = (c2 & 0xffffffffu) | c3 << 32;
  for (int g = 0; g < groups; ++g) {
    const uint64_t words[2] = {low[g], high[g]};  // the first draw of a word is its lowest byte
    memcpy(to + 16 * g, words, 16);
  }
}

/// Draws first, first + 1, ..., in words, so that what they are added to has lanes of one width.
OSPREY_INLINE void draw_run(uint32_t* __restrict draws, uint64_t seed, uint64_t stream, uint64_t first,
                            int64_t n) {
  uint8_t all[quantize_run + 16 + 16 * groups];  // of whole groups
  const int64_t skipped = static_cast<int64_t>(first % 16);
  for (int64_t at = 0; at < skipped + n; at += 16 * groups)
    draw_groups(all + at, seed, stream, first / 16 + static_cast<uint64_t>(at) / 16);
  for (int64_t i = 0; i < n; ++i) draws[i] = all[skipped + i];
}

/// 16 elements with one scale, which is zero for those that become 0; draws are for stochastic rounding, or
/// null.
template <Element e>
OSPREY_INLINE void encode_step(uint8_t* codes, const float* v, float inverse, const uint32_t* draws) {
  alignas(64) int32_t words[step];
  if (!(inverse > 0)) {  // zeros, or no numbers
    for (int64_t k = 0; k < step; ++k) words[k] = 0;
  } else if (draws) {
#pragma omp simd
    for (int64_t k = 0; k < step; ++k)
      words[k] = static_cast<int32_t>(encode_stochastic(e, v[k] * inverse, draws[k]));
  } else {
#pragma omp simd
    for (int64_t k = 0; k < step; ++k) words[k] = static_cast<int32_t>(encode_nearest(e, v[k] * inverse));
  }
  pack_step<element_bits(e)>(codes, words);
}

/// Bit i: |v[i] * inverse| <= limit; of 16 elements.
OSPREY_INLINE uint32_t kept_bits(const float* v, float inverse, float limit) {
  uint32_t bits = 0;
  for (int k = 0; k < step; k += lanes)
    bits |= sign_bits(magnitude(load(v + k) * splat(inverse)) <= splat(limit)) << k;
  return bits;
}

template <Element e>
void encode(const EncodeRun& a) {
  constexpr int64_t bits = element_bits(e);
  alignas(64) uint32_t draws[quantize_run + step];
  if (a.stochastic) draw_run(draws, a.seed, a.stream, a.first_draw, a.n);
  const float* inverse = a.inverse;
  for (int64_t b = 0; b < a.n; b += a.block, ++inverse) {
    const int64_t end = b + a.block < a.n ? b + a.block : a.n;
    for (int64_t i = b; i < end; i += step) {
      const uint32_t* draw = a.stochastic ? draws + i : nullptr;
      uint8_t* to = a.codes + i * bits / 8;
      if (i + step <= a.n) {
        encode_step<e>(to, a.v + i, *inverse, draw);
      } else {
        uint8_t last[step];
        encode_step<e>(last, a.v + i, *inverse, draw);
        for (int64_t k = 0; k < (a.n - i) * bits / 8; ++k) to[k] = last[k];
      }
    }
  }
  if (!a.mask) return;
  inverse = a.inverse;
  for (int64_t b = 0; b < a.n; b += a.block, ++inverse)
    for (int64_t i = b; i < a.n && i < b + a.block; i += step) {
      const uint32_t kept = kept_bits(a.v + i, *inverse, a.limit);
      a.mask[i / 8] = static_cast<uint8_t>(kept);
      if (i + 8 < a.n) a.mask[i / 8 + 1] = static_cast<uint8_t>(kept >> 8);
    }
}

typedef int16_t Halves __attribute__((vector_size(4 * lanes)));  // bits of bf16 numbers

/// One block of mxfp4 whose numbers are no denormals, or zero: codes of two elements a byte.
OSPREY_INLINE void mxfp4_block(uint8_t* codes, const bf16* x, uint32_t scale) {
  const Halves zero{};
  const int16_t exponent = static_cast<int16_t>((static_cast<int>(scale) - 127) * 128);
  for (int i = 0; i < 32; i += 2 * lanes) {
    Halves bits;
    memcpy(&bits, x + i, sizeof bits);
    // Divided by the scale; at most 8. What is below 2^-126 becomes negative.
    const Halves a = (bits & int16_t{0x7fff}) - exponent, v = a > zero ? a : zero;
    // From 1 on, the two upper bits of the mantissa's eight and the exponent are the code, but for an offset.
    const Halves upper = ((v + int16_t{0x1f} + ((v >> 6) & int16_t{1})) >> 6) - int16_t{252};
    const Halves below =
        ((v > zero + int16_t{0x3e80}) & int16_t{1}) + ((v >= zero + int16_t{0x3f40}) & int16_t{1});
    Halves code = upper > below ? upper : below;
    code = code < zero + int16_t{7} ? code : zero + int16_t{7};
    code |= (bits >> 12) & int16_t{8};
    const IVec pairs = (IVec)code;
    store_bytes(codes + i / 2, pairs | (pairs >> 12));
  }
}

void mxfp4_of_bf16(uint8_t* codes, uint8_t* scales, const bf16* x, int64_t n, ScaleRule rule) {
  constexpr int64_t block = 32;
  const int64_t count = n / block;
  alignas(64) uint32_t largest[quantize_run / block];
  reduce_blocks(largest, count, [=](int64_t b) {
    Vec most{};
    for (int k = 0; k < block; k += 2 * lanes) {
      IVec two;
      memcpy(&two, x + b * block + k, sizeof two);
      const Vec high = magnitude((Vec)(two & splat(int32_t{-0x10000}))), low = magnitude((Vec)(two << 16));
      most = LargestOf::of(most, LargestOf::of(high, low));
    }
    return most;
  });
  float inverse[quantize_run / block];
  power_scales<Element::e2m1>(scales, inverse, largest, count, rule);
  for (int64_t b = 0; b < count; ++b) {
    // Where bf16 has denormals, and where there are no numbers.
    if (scales[b] < 8 || scales[b] == e8m0_nan) {
      float v[block];
      load_run(v, x + b * block, block);
      encode<Element::e2m1>({v, block, block, inverse + b, 6.0f, codes + b * block / 2, nullptr, 0, 0, 0, 0});
    } else {
      mxfp4_block(codes + b * block / 2, x + b * block, scales[b]);
    }
  }
}

template <Element e>
void decode(float* __restrict v, const uint8_t* __restrict in, int64_t n) {
  alignas(64) uint8_t codes[quantize_run];
  unpack<element_bits(e)>(codes, in, n);
  for (int64_t i = 0; i < n; ++i) v[i] = decode_element(e, codes[i]);
}

#define OSPREY_BY_ELEMENT(f)                                                                  \
  {                                                                                           \
    f<Element::e2m1>, f<Element::e2m3>, f<Element::e3m2>, f<Element::e4m3>, f<Element::e5m2>, \
        f<Element::int4>, f<Element::int8>                                                    \
  }

}  // namespace

extern const QuantizeTable quantize_table;
const QuantizeTable quantize_table = {
    load_run<float>,
    load_run<bf16>,
    load_columns<float>,
    load_columns<bf16>,
    store_run<float>,
    store_run<bf16>,
    multiply,
    rotate,
    keep,
    largest_of_blocks,
    largest_finite,
    magnitudes,
    slope_sum,
    mxfp4_of_bf16,
    deviation_scales,
    error_difference,
    OSPREY_BY_ELEMENT(power_scales),
    OSPREY_BY_ELEMENT(encode),
    OSPREY_BY_ELEMENT(decode),
};

}  // namespace osprey::cpu::OSPREY_ISA
