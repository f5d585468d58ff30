#include "kernels/cpu/isa/muon.h"

namespace osprey::cpu::OSPREY_ISA {

constexpr int64_t tile = 32;  // a 32 x 32 float tile is 4 KiB: both sides of a transposition stay in L1

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static double momentum(float* __restrict m, const float* __restrict grad, int64_t n, float beta,
                       float grad_scale, MuonDirectionFactors f) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    m[i] = muon_momentum_element(m[i], grad[i], beta, grad_scale);
    const double u = muon_direction_element(m[i], grad[i], f);
    sum += u * u;
  }
  return sum;
}

template <class T>
static void direction(T* __restrict x, const float* __restrict m, const float* __restrict grad, int64_t n,
                      MuonDirectionFactors f) {
  for (int64_t i = 0; i < n; ++i) x[i] = Convert<T>::from(muon_direction_element(m[i], grad[i], f));
}

template <class T>
static void transposed(T* __restrict x, const float* __restrict m, const float* __restrict grad, int64_t rows,
                       int64_t cols, int64_t begin, int64_t end, MuonDirectionFactors f) {
  for (int64_t c0 = begin; c0 < end; c0 += tile) {
    const int64_t c1 = smaller(c0 + tile, end);
    for (int64_t r0 = 0; r0 < rows; r0 += tile) {
      const int64_t r1 = smaller(r0 + tile, rows);
      float u[tile][tile];
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c)
          u[r - r0][c - c0] = muon_direction_element(m[r * cols + c], grad[r * cols + c], f);
      for (int64_t c = c0; c < c1; ++c)
        for (int64_t r = r0; r < r1; ++r) x[c * rows + r] = Convert<T>::from(u[r - r0][c - c0]);
    }
  }
}

template <class T>
static void update(bf16* __restrict value, float* __restrict master, const T* __restrict x, int64_t cols,
                   int64_t begin, int64_t end, int64_t x_row, int64_t x_col, float step_size, float decay) {
  if (x_col == 1) {
    for (int64_t i = begin * cols; i < end * cols; ++i)
      master[i] = muon_update_element(master[i], to_float(x[i]), step_size, decay);
  } else {
    for (int64_t r0 = begin; r0 < end; r0 += tile) {
      const int64_t r1 = smaller(r0 + tile, end);
      for (int64_t c0 = 0; c0 < cols; c0 += tile) {
        const int64_t c1 = smaller(c0 + tile, cols);
        float u[tile][tile];
        for (int64_t c = c0; c < c1; ++c)
          for (int64_t r = r0; r < r1; ++r) u[r - r0][c - c0] = to_float(x[r * x_row + c * x_col]);
        for (int64_t r = r0; r < r1; ++r)
          for (int64_t c = c0; c < c1; ++c) {
            float& p = master[r * cols + c];
            p = muon_update_element(p, u[r - r0][c - c0], step_size, decay);
          }
      }
    }
  }
  if (value)
    for (int64_t i = begin * cols; i < end * cols; ++i) value[i] = to_bf16(master[i]);
}

template <class T>
static void mirror(T* c, int64_t n, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t j0 = end; j0 < n; j0 += tile)
    for (int64_t i0 = begin; i0 < end; i0 += tile)
      for (int64_t j = j0; j < smaller(j0 + tile, n); ++j)
        for (int64_t i = i0; i < smaller(i0 + tile, end); ++i) c[j * stride + i] = c[i * stride + j];
}

extern const MuonTable muon_table;
const MuonTable muon_table = {momentum,          direction<float>, direction<bf16>,
                              transposed<float>, transposed<bf16>, update<float>,
                              update<bf16>,      mirror<float>,    mirror<bf16>};

}  // namespace osprey::cpu::OSPREY_ISA
