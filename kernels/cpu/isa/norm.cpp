#include "kernels/cpu/isa/norm.h"

#include <math.h>

namespace osprey::cpu::OSPREY_ISA {
namespace {

template <class T>
void rmsnorm_forward(const NormRows<T>& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = a.x + r * a.x_stride;
    T* y = a.out + r * a.out_stride;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < a.cols; ++c) sum += to_float(x[c]) * to_float(x[c]);
    const float rstd = 1.0f / sqrtf(sum / static_cast<float>(a.cols) + a.eps);
    a.stats[r] = rstd;
    if (a.weight_count == 1) {
      const float scale = rstd * to_float(a.weight[0]);
      for (int64_t c = 0; c < a.cols; ++c) y[c] = Convert<T>().from(to_float(x[c]) * scale);
    } else {
      for (int64_t c = 0; c < a.cols; ++c)
        y[c] = Convert<T>().from(to_float(x[c]) * rstd * to_float(a.weight[c]));
    }
  }
}

/// Weights are a vector or one scalar, decided once per call.
template <class T, bool Scalar>
void rmsnorm_backward_rows(const NormRows<T>& a) {
  float scalar_sum = 0;
  const float w0 = to_float(a.weight[0]);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = a.x + r * a.x_stride;
    const T* dy = a.dy + r * a.dy_stride;
    const float rstd = a.stats[r];
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < a.cols; ++c)
      dot += to_float(dy[c]) * to_float(x[c]) * (Scalar ? 1.0f : to_float(a.weight[c]));
    if (Scalar) {
      scalar_sum += dot * rstd;
      dot *= w0;
    } else if (a.partial) {
      for (int64_t c = 0; c < a.cols; ++c) a.partial[c] += to_float(dy[c]) * to_float(x[c]) * rstd;
    }
    if (!a.out) continue;
    T* dx = a.out + r * a.out_stride;
    const float k = dot * rstd * rstd * rstd / static_cast<float>(a.cols);
    if (a.base) {
      const T* base = a.base + r * a.base_stride;
      for (int64_t c = 0; c < a.cols; ++c)
        dx[c] = Convert<T>().from(to_float(base[c]) +
                                  rstd * to_float(dy[c]) * (Scalar ? w0 : to_float(a.weight[c])) -
                                  k * to_float(x[c]));
    } else {
      for (int64_t c = 0; c < a.cols; ++c)
        dx[c] = Convert<T>().from(rstd * to_float(dy[c]) * (Scalar ? w0 : to_float(a.weight[c])) -
                                  k * to_float(x[c]));
    }
  }
  if (Scalar && a.partial) a.partial[0] += scalar_sum;
}

template <class T>
void rmsnorm_backward(const NormRows<T>& a) {
  if (a.weight_count == 1)
    rmsnorm_backward_rows<T, true>(a);
  else
    rmsnorm_backward_rows<T, false>(a);
}

template <class T>
void layernorm_forward(const NormRows<T>& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = a.x + r * a.x_stride;
    T* y = a.out + r * a.out_stride;
    const float n = static_cast<float>(a.cols);
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < a.cols; ++c) sum += to_float(x[c]);
    const float mean = sum / n;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < a.cols; ++c) squares += (to_float(x[c]) - mean) * (to_float(x[c]) - mean);
    const float rstd = 1.0f / sqrtf(squares / n + a.eps);
    a.stats[2 * r] = mean;
    a.stats[2 * r + 1] = rstd;
    for (int64_t c = 0; c < a.cols; ++c)
      y[c] = Convert<T>().from((to_float(x[c]) - mean) * rstd * to_float(a.weight[c]) + to_float(a.bias[c]));
  }
}

template <class T>
void layernorm_backward(const NormRows<T>& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = a.x + r * a.x_stride;
    const T* dy = a.dy + r * a.dy_stride;
    const float mean = a.stats[2 * r], rstd = a.stats[2 * r + 1], n = static_cast<float>(a.cols);
    float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t c = 0; c < a.cols; ++c) {
      const float g = to_float(dy[c]) * to_float(a.weight[c]);
      sum += g;
      dot += g * (to_float(x[c]) - mean) * rstd;
    }
    float* dweight = a.partial;
    float* dbias = a.partial + a.cols;
    for (int64_t c = 0; c < a.cols; ++c) {
      dweight[c] += to_float(dy[c]) * (to_float(x[c]) - mean) * rstd;
      dbias[c] += to_float(dy[c]);
    }
    if (!a.out) continue;
    T* dx = a.out + r * a.out_stride;
    const T* base = a.base ? a.base + r * a.base_stride : nullptr;
    for (int64_t c = 0; c < a.cols; ++c) {
      const float xhat = (to_float(x[c]) - mean) * rstd;
      const float d = rstd * (to_float(dy[c]) * to_float(a.weight[c]) - sum / n - xhat * dot / n);
      dx[c] = Convert<T>().from(base ? to_float(base[c]) + d : d);
    }
  }
}

}  // namespace

extern const NormTable norm_table = {
    rmsnorm_forward<float>,   rmsnorm_forward<bf16>,   rmsnorm_backward<float>,   rmsnorm_backward<bf16>,
    layernorm_forward<float>, layernorm_forward<bf16>, layernorm_backward<float>, layernorm_backward<bf16>,
};

}  // namespace osprey::cpu::OSPREY_ISA
