#include "kernels/cpu/isa/classifier.h"

#include <math.h>

#include "kernels/numerics/exp.h"

namespace osprey::cpu::OSPREY_ISA {

template <class T>
static void gradient(T* d, const float* e, int64_t n, int64_t target, float factor, float scale) {
  for (int64_t j = 0; j < n; ++j) d[j] = Convert<T>::from(e[j] * factor);
  d[target] = Convert<T>::from(e[target] * factor - scale);
}

static double row(float* logits, int64_t n, int64_t target, float scale, void* d, int d_is_f32) {
  if (target < 0) {
    if (d) memset(d, 0, static_cast<size_t>(n) * (d_is_f32 ? 4 : 2));
    return 0;
  }
  float top = logits[0];
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < n; ++j) top = logits[j] > top ? logits[j] : top;
  const float wanted = logits[target];
  // Sums of 1024 in fp32, then in double: large vocabularies lose nothing.
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += 1024) {
    const int64_t end = begin + 1024 < n ? begin + 1024 : n;
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t j = begin; j < end; ++j) {
      const float e = fast_exp(logits[j] - top);
      logits[j] = e;
      part += e;
    }
    sum += static_cast<double>(part);
  }
  if (d) {
    const float factor = static_cast<float>(static_cast<double>(scale) / sum);
    if (d_is_f32)
      gradient(static_cast<float*>(d), logits, n, target, factor, scale);
    else
      gradient(static_cast<bf16*>(d), logits, n, target, factor, scale);
  }
  return static_cast<double>(top) - static_cast<double>(wanted) + log(sum);
}

template <class T>
static void columns_in(const float* logits, int64_t n, int64_t target, float log_sum, float scale, T* d) {
  for (int64_t j = 0; j < n; ++j) d[j] = Convert<T>::from(fast_exp(logits[j] - log_sum) * scale);
  if (0 <= target && target < n)
    d[target] = Convert<T>::from(fast_exp(logits[target] - log_sum) * scale - scale);
}

static void columns(const float* logits, int64_t n, int64_t target, float log_sum, float scale, void* d,
                    int d_is_f32) {
  if (d_is_f32)
    columns_in(logits, n, target, log_sum, scale, static_cast<float*>(d));
  else
    columns_in(logits, n, target, log_sum, scale, static_cast<bf16*>(d));
}

extern const ClassifierTable classifier_table{row, columns};

}  // namespace osprey::cpu::OSPREY_ISA
