#include "kernels/cpu/isa/rope.h"

#include <math.h>

#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

namespace {

/// One head in fp32, in two halves that are worked on side by side. Sized for D = 256, zero beyond
/// D/2, so that whole vectors can be taken.
struct Halves {
  alignas(64) float low[128] = {};
  alignas(64) float high[128] = {};
};

template <class T>
void widen(float* to, const T* from, int n) {
  int i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

template <class T>
void narrow(T* to, const float* from, int n) {
  int i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = Convert<T>::from(from[i]);
}

template <class T>
void read(Halves& to, const T* from, int half) {
  widen(to.low, from, half);
  widen(to.high, from + half, half);
}

template <class T>
void write(T* to, const Halves& from, int half) {
  narrow(to, from.low, half);
  narrow(to + half, from.high, half);
}

/// 1 / root mean square.
float inverse_rms(const Halves& x, int half, float eps) {
  Vec squares = {};
  for (int i = 0; i < half; i += lanes)
    squares += load(x.low + i) * load(x.low + i) + load(x.high + i) * load(x.high + i);
  return 1.0f / sqrtf(sum_lanes(squares) / static_cast<float>(2 * half) + eps);
}

/// `sign` 1 turns forward, -1 back.
void turn(Halves& x, const Halves& angle, int half, float sign) {
  for (int i = 0; i < half; i += lanes) {
    const Vec c = load(angle.low + i), s = load(angle.high + i) * sign;
    const Vec a = load(x.low + i), b = load(x.high + i);
    store(x.low + i, a * c - b * s);
    store(x.high + i, b * c + a * s);
  }
}

void read_angle(Halves& angle, const RopeRows& m, int64_t row, int half) {
  const int64_t at = static_cast<int64_t>(m.positions[row]) * half;
  widen(angle.low, m.cosines + at, half);
  widen(angle.high, m.sines + at, half);
}

/// Without a norm and with halves of whole vectors there is no need for a copy in fp32.
bool turns_directly(const RopeRows& m) { return !m.weight && m.head_size % (2 * lanes) == 0; }

template <class T>
void turn_directly(T* to, const T* from, const float* cosines, const float* sines, int half, float sign) {
  for (int i = 0; i < half; i += lanes) {
    const Vec c = load(cosines + i), s = load(sines + i) * sign;
    const Vec a = load(from + i), b = load(from + half + i);
    store(to + i, a * c - b * s);
    store(to + half + i, b * c + a * s);
  }
}

template <class T>
void forward(const RopeRows& m) {
  const int half = static_cast<int>(m.head_size / 2);
  Halves angle, weight, x;
  if (m.weight) read(weight, static_cast<const T*>(m.weight), half);
  for (int64_t r = 0; r < m.rows; ++r) {
    read_angle(angle, m, r, half);
    for (int64_t h = 0; h < m.heads; ++h) {
      T* at = static_cast<T*>(m.x) + r * m.x_stride + h * m.head_size;
      if (m.saved)
        memcpy(static_cast<T*>(m.saved) + r * m.saved_stride + h * m.head_size, at,
               static_cast<size_t>(m.head_size) * sizeof(T));
      if (turns_directly(m)) {
        const int64_t angles = static_cast<int64_t>(m.positions[r]) * half;
        turn_directly(at, at, m.cosines + angles, m.sines + angles, half, 1.0f);
        continue;
      }
      read(x, at, half);
      if (m.weight) {
        const float rstd = inverse_rms(x, half, m.eps);
        for (int i = 0; i < half; i += lanes) {
          store(x.low + i, load(x.low + i) * rstd * load(weight.low + i));
          store(x.high + i, load(x.high + i) * rstd * load(weight.high + i));
        }
      }
      turn(x, angle, half, 1.0f);
      write(at, x, half);
    }
  }
}

/// Gradient of one half's weights, and its part of sum(w g xhat).
Vec weight_gradient(float* dweight, const float* g, const float* x, const float* weight, float rstd,
                    int half) {
  Vec sum = {};
  for (int i = 0; i < half; i += lanes) {
    const Vec hat = load(x + i) * rstd, grad = load(g + i);
    store(dweight + i, load(dweight + i) + grad * hat);
    sum += grad * load(weight + i) * hat;
  }
  return sum;
}

void input_gradient(float* g, const float* x, const float* weight, float rstd, float mean, int half) {
  for (int i = 0; i < half; i += lanes)
    store(g + i, (load(g + i) * load(weight + i) - load(x + i) * (rstd * mean)) * rstd);
}

/// g becomes rstd (w g - xhat mean(w g xhat)); dweight grows by g xhat.
void norm_backward(Halves& g, const Halves& x, const Halves& weight, Halves& dweight, int half, float eps) {
  const float rstd = inverse_rms(x, half, eps);
  const Vec sum = weight_gradient(dweight.low, g.low, x.low, weight.low, rstd, half) +
                  weight_gradient(dweight.high, g.high, x.high, weight.high, rstd, half);
  const float mean = sum_lanes(sum) / static_cast<float>(2 * half);
  input_gradient(g.low, x.low, weight.low, rstd, mean, half);
  input_gradient(g.high, x.high, weight.high, rstd, mean, half);
}

template <class T>
void backward(const RopeRows& m) {
  const int half = static_cast<int>(m.head_size / 2);
  Halves angle, weight, dweight, g, x;
  if (m.weight) read(weight, static_cast<const T*>(m.weight), half);
  for (int64_t r = 0; r < m.rows; ++r) {
    read_angle(angle, m, r, half);
    for (int64_t h = 0; h < m.heads; ++h) {
      const T* dy = static_cast<const T*>(m.dy) + r * m.dy_stride + h * m.head_size;
      if (turns_directly(m)) {
        const int64_t angles = static_cast<int64_t>(m.positions[r]) * half;
        if (m.x)
          turn_directly(static_cast<T*>(m.x) + r * m.x_stride + h * m.head_size, dy, m.cosines + angles,
                        m.sines + angles, half, -1.0f);
        continue;
      }
      read(g, dy, half);
      turn(g, angle, half, -1.0f);
      if (m.weight) {
        read(x, static_cast<const T*>(m.saved) + r * m.saved_stride + h * m.head_size, half);
        norm_backward(g, x, weight, dweight, half, m.eps);
      }
      if (m.x) write(static_cast<T*>(m.x) + r * m.x_stride + h * m.head_size, g, half);
    }
  }
  for (int i = 0; i < half && m.weight; ++i) {
    m.dweight[i] += dweight.low[i];
    m.dweight[half + i] += dweight.high[i];
  }
}

}  // namespace

extern const RopeTable rope_table{forward<float>, forward<bf16>, backward<float>, backward<bf16>};

}  // namespace osprey::cpu::OSPREY_ISA
