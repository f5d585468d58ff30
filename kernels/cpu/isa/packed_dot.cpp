#include "kernels/cpu/isa/packed_dot.h"

#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

namespace {

void add_dots(float* y, const float* w, const float* x, int64_t x_stride, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * x_stride;
    Vec even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
      even += load(w + i) * load(row + i);
      odd += load(w + i + lanes) * load(row + i + lanes);
    }
    float sum = sum_lanes(even + odd);
    for (; i < n; ++i) sum += w[i] * row[i];
    y[r] += sum;
  }
}

void round_bf16(float* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = to_float(to_bf16(v[i]));
}

void e8m0_scales(float* __restrict scales, const uint8_t* __restrict codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) scales[i] = decode_e8m0(codes[i]);
}

#if defined(__AVX512BF16__)

/// Values of pairs of codes as pairs of bf16, 32 in a vector: a byte's low half is its first.
struct Decoder {
  Decoder() {
    alignas(64) uint16_t values[32];
    for (uint32_t i = 0; i < 32; ++i) values[i] = to_bf16(decode_element(Element::e2m1, i & 15)).bits;
    table = _mm512_load_si512(values);
  }
  OSPREY_INLINE __m512bh of(const Decoder& d, const uint8_t* codes) {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // An index is five bits: values come twice, so that a neighbour's lowest bit does not matter.
    const __m512i index = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    return (__m512bh)_mm512_permutexvar_epi16(index, d.table);
  }
  __m512i table;
};

template <int rows>
OSPREY_INLINE void dots(float* y, const uint8_t* codes, const float* scales, const bf16* x, int64_t x_stride,
                        int64_t k, const Decoder& d) {
  constexpr int chains = rows < 4 ? 4 : 1;  // sums of blocks in turn, so that enough are under way
  __m512 sum[rows][chains];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) sum[r][c] = _mm512_setzero_ps();
  const auto block = [&](int64_t b, int c) __attribute__((always_inline)) {
    const __m512bh w = Decoder::of(d, codes + 16 * b);
    const __m512 scale = _mm512_set1_ps(scales[b]);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const __m512bh v = (__m512bh)_mm512_loadu_si512(x + r * x_stride + 32 * b);
      sum[r][c] = _mm512_fmadd_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), w, v), scale, sum[r][c]);
    }
  };
  const int64_t blocks = k / 32;
  int64_t b = 0;
  for (; b + chains <= blocks; b += chains) {
    __builtin_prefetch(codes + 16 * b + 1024);
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) block(b + c, c);
  }
  for (; b < blocks; ++b) block(b, 0);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    __m512 all = sum[r][0];
    for (int c = 1; c < chains; ++c) all = _mm512_add_ps(all, sum[r][c]);
    y[r] = sum_lanes((Vec)all);
  }
}

void mxfp4_bf16(float* y, const uint8_t* codes, const float* scales, const bf16* x, int64_t x_stride,
                int64_t rows, int64_t k) {
  const Decoder d;
  for (int64_t r = 0; r < rows;) {
    const int64_t left = rows - r;
    const bf16* at = x + r * x_stride;
    if (left >= 8)
      dots<8>(y + r, codes, scales, at, x_stride, k, d);
    else if (left >= 4)
      dots<4>(y + r, codes, scales, at, x_stride, k, d);
    else if (left >= 2)
      dots<2>(y + r, codes, scales, at, x_stride, k, d);
    else
      dots<1>(y + r, codes, scales, at, x_stride, k, d);
    r += left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
}

#endif

}  // namespace

extern const PackedDotTable packed_dot_table;
#if defined(__AVX512BF16__)
const PackedDotTable packed_dot_table = {add_dots, round_bf16, mxfp4_bf16, e8m0_scales};
#else
const PackedDotTable packed_dot_table = {add_dots, round_bf16, nullptr, e8m0_scales};
#endif

}  // namespace osprey::cpu::OSPREY_ISA
