#pragma once
// Stands in front of the real kernels/cuda/ptx.h: the same functions, computed as their comments there say.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/numerics/bf16.h"
#include "tests/support/executor/executor.h"

namespace osprey::cuda {

inline void push_range(const char*) {}
inline void pop_range() {}

template <class T>
T& block_shared() {
  static_assert(alignof(T) <= 128);
  return *static_cast<T*>(executor::shared_memory(sizeof(T)));
}

inline uint32_t pack_bf16x2(float low, float high) {
  return static_cast<uint32_t>(to_bf16(high).bits) << 16 | to_bf16(low).bits;
}

template <class T>
T load_streaming(const T* p) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  return *p;
}
template <class T>
void store_streaming(T* p, const T& v) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  *p = v;
}

inline float fast_exp2(float x) {
  const auto flushed = [](float v) { return std::fabs(v) < 1.17549435e-38f ? std::copysign(0.0f, v) : v; };
  return flushed(std::exp2(flushed(x)));
}

inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  executor::copy_later(shared, global, valid);
}
inline void copy_async_commit() { executor::close_copies(); }
template <int Pending>
void copy_async_wait() {
  executor::wait_for_copies(Pending);
}

/// Element (row, col) of matrix `matrix` of four, whose rows the lanes point to.
struct MatrixRows {
  const void* row;
  uint32_t (*r)[4];
};
inline uint16_t matrix_element(void* const (&lanes)[32], int matrix, int row, int col) {
  uint16_t v;
  memcpy(&v, static_cast<const char*>(static_cast<MatrixRows*>(lanes[8 * matrix + row])->row) + 2 * col, 2);
  return v;
}

inline void load_matrix_x4(uint32_t (&r)[4], const void* row,
                           std::source_location at = std::source_location::current()) {
  executor::require_shared(row, 16, 16, "load_matrix_x4");
  MatrixRows mine{row, &r};
  executor::wait_for_lanes(0xffffffffu, "load_matrix_x4", at, &mine, [](void* const(&lanes)[32], unsigned) {
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = matrix_element(lanes, i, l / 4, l % 4 * 2);
        const uint32_t high = matrix_element(lanes, i, l / 4, l % 4 * 2 + 1);
        (*static_cast<MatrixRows*>(lanes[l])->r)[i] = high << 16 | low;
      }
  });
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row,
                                      std::source_location at = std::source_location::current()) {
  executor::require_shared(row, 16, 16, "load_matrix_x4_transposed");
  MatrixRows mine{row, &r};
  executor::wait_for_lanes(0xffffffffu, "load_matrix_x4_transposed", at, &mine,
                           [](void* const(&lanes)[32], unsigned) {
                             for (int l = 0; l < 32; ++l)
                               for (int i = 0; i < 4; ++i) {
                                 const uint32_t low = matrix_element(lanes, i, l % 4 * 2, l / 4);
                                 const uint32_t high = matrix_element(lanes, i, l % 4 * 2 + 1, l / 4);
                                 (*static_cast<MatrixRows*>(lanes[l])->r)[i] = high << 16 | low;
                               }
                           });
}

/// Fragments of one lane.
struct Fragments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

inline void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             std::source_location at = std::source_location::current()) {
  Fragments mine{d, a, b};
  executor::wait_for_lanes(0xffffffffu, "mma_bf16_16x8x16", at, &mine, [](void* const(&lanes)[32], unsigned) {
    const auto half = [](uint32_t pair, int i) {
      return to_float(bf16{static_cast<uint16_t>(pair >> 16 * i)});
    };
    float left[16][16], right[8][16];  // right by columns
    for (int l = 0; l < 32; ++l) {
      const auto* f = static_cast<Fragments*>(lanes[l]);
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 2; ++i) {
        for (int r = 0; r < 4; ++r) left[g + r % 2 * 8][2 * t + i + r / 2 * 8] = half(f->a[r], i);
        for (int r = 0; r < 2; ++r) right[g][2 * t + i + r * 8] = half(f->b[r], i);
      }
    }
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < 4; ++r) {
        const int row = l / 4 + r / 2 * 8, col = l % 4 * 2 + r % 2;
        double sum = 0;
        for (int k = 0; k < 16; ++k)
          sum += static_cast<double>(left[row][k]) * static_cast<double>(right[col][k]);
        float* to = static_cast<Fragments*>(lanes[l])->d + r;
        *to = static_cast<float>(static_cast<double>(*to) + sum);
      }
  });
}

}  // namespace osprey::cuda
