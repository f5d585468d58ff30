#include "kernels/cpu/isa/pointwise.h"

#include "kernels/numerics/exp.h"

namespace osprey::cpu::OSPREY_ISA {
namespace {

template <class T>
void add(T* y, const T* a, const T* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = Convert<T>().from(to_float(a[i]) + to_float(b[i]));
}

template <class T>
void accumulate(float* y, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += to_float(x[i]);
}

template <class T>
void swiglu_forward(T* h, const T* gate, const T* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gate[i]);
    h[i] = Convert<T>().from(g * sigmoid(g) * to_float(up[i]));
  }
}

template <class T>
void swiglu_backward(T* dgate, T* dup, const T* dh, const T* gate, const T* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gate[i]), d = to_float(dh[i]), s = sigmoid(g);
    dup[i] = Convert<T>().from(d * g * s);
    dgate[i] = Convert<T>().from(d * to_float(up[i]) * s * (1.0f + g * (1.0f - s)));
  }
}

template <class T>
void activation(T* y, const T* x, int64_t n, Activation which) {
  if (which == Activation::relu) {
    for (int64_t i = 0; i < n; ++i) y[i] = Convert<T>().from(relu(to_float(x[i])));
    return;
  }
  for (int64_t i = 0; i < n; ++i) y[i] = Convert<T>().from(gelu(to_float(x[i])));
}

template <class T>
void activation_backward(T* dx, const T* dy, const T* x, int64_t n, Activation which) {
  if (which == Activation::relu) {
    for (int64_t i = 0; i < n; ++i) dx[i] = Convert<T>().from(to_float(dy[i]) * relu_slope(to_float(x[i])));
    return;
  }
  for (int64_t i = 0; i < n; ++i) dx[i] = Convert<T>().from(to_float(dy[i]) * gelu_slope(to_float(x[i])));
}

}  // namespace

extern const PointwiseTable pointwise_table = {
    add<float>,
    add<bf16>,
    accumulate<bf16>,
    accumulate<float>,
    swiglu_forward<float>,
    swiglu_forward<bf16>,
    swiglu_backward<float>,
    swiglu_backward<bf16>,
    activation<float>,
    activation<bf16>,
    activation_backward<float>,
    activation_backward<bf16>,
};

}  // namespace osprey::cpu::OSPREY_ISA
