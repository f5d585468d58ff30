#include "kernels/cpu/isa/quantize.h"

#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {
namespace {

constexpr int64_t step = 16;  // inner loops have this length, so that they become one vector of any set

template <class T>
void load_run(float* __restrict v, const T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = to_float(x[i]);
}

template <class T>
void load_columns(float* __restrict v, int64_t v_stride, const T* __restrict x, int64_t x_stride,
                  int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) v[c * v_stride + r] = to_float(x[r * x_stride + c]);
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

/// Sylvester's matrix, sums of neighbours first: an order that kernels/cuda/quantize.cu shares.
template <int size>
OSPREY_INLINE void hadamard(Vec* x) {
  constexpr int vectors = size / lanes;
  for (int h = 1; h < lanes; h *= 2) {
    const IVec partner = iota() ^ h;
    const Vec sign = (iota() & h) != 0 ? splat(-1.0f) : splat(1.0f);
    for (int i = 0; i < vectors; ++i) x[i] = __builtin_shuffle(x[i], partner) + x[i] * sign;
  }
  for (int h = 1; h < vectors; h *= 2)
    for (int i = 0; i < vectors; ++i)
      if ((i & h) == 0) {
        const Vec a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
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

void largest_of_blocks(uint32_t* largest, const float* v, int64_t n, int64_t block) {
  for (int64_t b = 0; b * block < n; ++b) {
    uint32_t most = 0;
    const int64_t end = (b + 1) * block < n ? (b + 1) * block : n;
#pragma omp simd reduction(max : most)
    for (int64_t i = b * block; i < end; ++i) {
      const uint32_t m = magnitude_bits(v[i]);
      most = m > most ? m : most;
    }
    largest[b] = most;
  }
}

void block_sums(int64_t* sum, int64_t* squares, const float* v, int64_t n, int unit) {
  int64_t s = 0, q = 0;
  const float up = power_of_two(-unit);
#pragma omp simd reduction(+ : s, q)
  for (int64_t i = 0; i < n; ++i) {
    const int64_t k = static_cast<int32_t>(v[i] * up);
    s += k;
    q += k * k;
  }
  *sum = s;
  *squares = q;
}

/// Codes, one in a word, to their places in bytes.
template <int bits>
OSPREY_INLINE void pack(uint8_t* __restrict out, const uint32_t* __restrict codes, int64_t n) {
  if constexpr (bits == 8) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(codes[i]);
  } else if constexpr (bits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) out[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  } else {
    static_assert(bits == 6);
    for (int64_t i = 0; i < n / 4; ++i) {
      const uint32_t* c = codes + 4 * i;
      const uint32_t word = c[0] | c[1] << 6 | c[2] << 12 | c[3] << 18;
      out[3 * i] = static_cast<uint8_t>(word);
      out[3 * i + 1] = static_cast<uint8_t>(word >> 8);
      out[3 * i + 2] = static_cast<uint8_t>(word >> 16);
    }
  }
}

template <int bits>
OSPREY_INLINE void unpack(uint32_t* __restrict codes, const uint8_t* __restrict in, int64_t n) {
  if constexpr (bits == 8) {
    for (int64_t i = 0; i < n; ++i) codes[i] = in[i];
  } else if constexpr (bits == 4) {
    for (int64_t i = 0; i < n / 2; ++i) {
      codes[2 * i] = in[i] & 15u;
      codes[2 * i + 1] = in[i] >> 4;
    }
  } else {
    for (int64_t i = 0; i < n / 4; ++i) {
      const uint32_t word =
          in[3 * i] | static_cast<uint32_t>(in[3 * i + 1]) << 8 | static_cast<uint32_t>(in[3 * i + 2]) << 16;
      for (int j = 0; j < 4; ++j) codes[4 * i + j] = word >> (6 * j) & 63u;
    }
  }
}

/// 16 elements with one scale.
template <Element e>
OSPREY_INLINE void encode_step(uint32_t* codes, const float* v, float inverse) {
#pragma omp simd
  for (int64_t i = 0; i < step; ++i) codes[i] = encode_nearest(e, v[i] * inverse);
}
template <Element e>
OSPREY_INLINE void encode_step_stochastic(uint32_t* codes, const float* v, float inverse, uint64_t seed,
                                          uint64_t stream, uint64_t first) {
  // Draws come by eight; a row may begin within a group.
  for (int64_t i = 0; i < step;) {
    const Philox group = draw_group(seed, stream, (first + static_cast<uint64_t>(i)) / 8);
    do {
      const uint64_t draw = first + static_cast<uint64_t>(i);
      codes[i] = encode_stochastic(e, v[i] * inverse, draw_of(group, static_cast<int>(draw % 8)));
      ++i;
    } while (i < step && (first + static_cast<uint64_t>(i)) % 8 != 0);
  }
}

template <Element e>
void encode(const EncodeRun& a) {
  alignas(64) uint32_t codes[quantize_run];
  for (int64_t i = 0; i < a.n; i += step) {
    const float inverse = a.inverse[i / a.block];
    if (!(inverse > 0))  // zeros, or no numbers
      memset(codes + i, 0, step * sizeof *codes);
    else if (a.stochastic)
      encode_step_stochastic<e>(codes + i, a.v + i, inverse, a.seed, a.stream,
                                a.first_draw + static_cast<uint64_t>(i));
    else
      encode_step<e>(codes + i, a.v + i, inverse);
  }
  pack<element_bits(e)>(a.codes, codes, a.n);
  if (!a.mask) return;
  for (int64_t i = 0; i < a.n; i += 8) {
    uint32_t byte = 0;
    const float inverse = a.inverse[i / a.block];
    for (int j = 0; j < 8; ++j) {
      const float m = bits_float(magnitude_bits(a.v[i + j] * inverse));
      byte |= static_cast<uint32_t>(m <= a.limit) << j;
    }
    a.mask[i / 8] = static_cast<uint8_t>(byte);
  }
}

template <Element e>
void decode(float* __restrict v, const uint8_t* __restrict in, int64_t n) {
  alignas(64) uint32_t codes[quantize_run];
  unpack<element_bits(e)>(codes, in, n);
  for (int64_t i = 0; i < n; ++i) v[i] = decode_element(e, codes[i]);
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
    largest_of_blocks,
    block_sums,
    {encode<Element::e2m1>, encode<Element::e2m3>, encode<Element::e3m2>, encode<Element::e4m3>,
     encode<Element::e5m2>, encode<Element::int4>, encode<Element::int8>},
    {decode<Element::e2m1>, decode<Element::e2m3>, decode<Element::e3m2>, decode<Element::e4m3>,
     decode<Element::e5m2>, decode<Element::int4>, decode<Element::int8>},
};

}  // namespace osprey::cpu::OSPREY_ISA
