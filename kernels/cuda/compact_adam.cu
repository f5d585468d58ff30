#include "kernels/compact_adam.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/compact_adam.h"

namespace osprey::cuda {

namespace {

using kernels::ApplyStep;
using kernels::CompactAdam;
using kernels::StoredMoment;

constexpr int threads = 256, warps = threads / warp_size;
constexpr int lane_elements = static_cast<int>(dynamic_block) / warp_size;

// Eight bytes a member; unused pointers are null.
struct Moments {
  float* f32;
  bf16* rounded;
  uint8_t* codes;
  float* scales;
};

struct Arguments {
  float* weight_f32;
  bf16* weight_bf16;
  bf16* rounded;
  float* direction_f32;
  bf16* direction_bf16;
  const float* grad;  // or x
  Moments m, v;
  AdamWConstants constants;
  double step_size, decay;
  uint64_t seed, stream;
  int64_t first_element, since, count;
  const double* control;
};

template <DynamicCode kind>
__device__ float load(const Moments& from, int64_t i, bool inside) {
  if (!inside) return 0;
  if (from.f32) return from.f32[i];
  if (from.rounded) return to_float(from.rounded[i]);
  return dynamic_decode<kind>(from.codes[i]) * from.scales[i / dynamic_block];
}

/// A warp stores its block: element `at + lane + 32 j` from x[j].
template <DynamicCode kind>
__device__ void store(const Moments& to, int64_t at, int64_t count, const float (&x)[lane_elements],
                      const uint32_t (&bits)[lane_elements]) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  float largest = 0, inverse = 0;
  if (to.codes) {
#pragma unroll
    for (int j = 0; j < lane_elements; ++j)
      if (at + lane + j * warp_size < count) largest = fmaxf(largest, fabsf(x[j]));
    largest = warp_max(largest);
    inverse = largest > 0 ? 1 / largest : 0;
    if (lane == 0) to.scales[at / dynamic_block] = largest;
  }
#pragma unroll
  for (int j = 0; j < lane_elements; ++j) {
    const int64_t i = at + lane + j * warp_size;
    if (i >= count) continue;
    if (to.f32)
      to.f32[i] = x[j];
    else if (to.rounded)
      to.rounded[i] = to_bf16_by_chance(x[j], bits[j]);
    else
      to.codes[i] = dynamic_encode<kind>(fminf(1.0f, fmaxf(-1.0f, x[j] * inverse)));
  }
}

__device__ float load_weight(const Arguments& a, int64_t i) {
  return a.weight_f32 ? a.weight_f32[i] : to_float(a.weight_bf16[i]);
}

__device__ void store_weight(const Arguments& a, int64_t i, float w, uint32_t bits) {
  if (a.weight_bf16) {
    a.weight_bf16[i] = to_bf16_by_chance(w, bits);
    return;
  }
  a.weight_f32[i] = w;
  if (a.rounded) a.rounded[i] = to_bf16(w);
}

/// A warp has one block of 256 elements.
__global__ void __launch_bounds__(threads) update(const __grid_constant__ Arguments a) {
  if (a.control[kernels::step_apply] == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t at = (blockIdx.x * int64_t{warps} + threadIdx.x / warp_size) * dynamic_block;
  if (at >= a.count) return;
  const int64_t step = static_cast<int64_t>(a.control[kernels::step_number]);
  AdamWConstants c = a.constants;
  c.learning_rate *= a.control[kernels::step_learning_rate_factor];
  const AdamWFactors f = adamw_factors(c, step - a.since, a.control[kernels::step_grad_scale]);
  const float first_scale = static_cast<float>(1 / (1 - power(c.beta1, step - a.since + 1)));
  const float learning_rate = static_cast<float>(c.learning_rate);
  const bool draws = a.weight_bf16 || a.m.rounded || a.v.rounded;
  float m[lane_elements], v[lane_elements];
  uint32_t m_bits[lane_elements], v_bits[lane_elements];
#pragma unroll
  for (int j = 0; j < lane_elements; ++j) {
    const int64_t i = at + lane + j * warp_size;
    const bool inside = i < a.count;
    const Philox bits = draws ? update_draws(a.seed, a.stream, step, a.first_element + i) : Philox{};
    m[j] = load<DynamicCode::with_sign>(a.m, i, inside);
    v[j] = load<DynamicCode::without_sign>(a.v, i, inside);
    m_bits[j] = bits.v[1];
    v_bits[j] = bits.v[2];
    if (!inside) continue;
    const float d = adam_direction(m[j], v[j], a.grad[i], f, first_scale);
    if (a.direction_f32) {
      a.direction_f32[i] = d;
    } else if (a.direction_bf16) {
      a.direction_bf16[i] = to_bf16(d);
    } else {
      const float w = load_weight(a, i);
      store_weight(a, i, w - (f.decay * w + learning_rate * d), bits.v[0]);
    }
  }
  __syncwarp();  // all have read the scales
  store<DynamicCode::with_sign>(a.m, at, a.count, m, m_bits);
  store<DynamicCode::without_sign>(a.v, at, a.count, v, v_bits);
}

__global__ void __launch_bounds__(threads) apply(const __grid_constant__ Arguments a) {
  if (a.control[kernels::step_apply] == 0) return;
  const int64_t i = blockIdx.x * int64_t{threads} + threadIdx.x;
  if (i >= a.count) return;
  const double factor = a.control[kernels::step_learning_rate_factor];
  const float step_size = static_cast<float>(factor * a.step_size),
              decay = static_cast<float>(factor * a.decay);
  const int64_t step = static_cast<int64_t>(a.control[kernels::step_number]);
  const uint32_t bits = a.weight_bf16 ? update_draws(a.seed, a.stream, step, a.first_element + i).v[0] : 0;
  const float w = load_weight(a, i);
  store_weight(a, i, w - (decay * w + step_size * a.grad[i]), bits);
}

template <class T>
T* pointer_if(const Tensor& t, DType dtype) {
  return t.defined() && t.dtype == dtype ? t.as<T>() : nullptr;
}

Moments moments(const StoredMoment& m) {
  return {pointer_if<float>(m.values, DType::f32), pointer_if<bf16>(m.values, DType::bf16),
          pointer_if<uint8_t>(m.values, DType::u8), pointer_if<float>(m.scales, DType::f32)};
}

Arguments weight_arguments(const Tensor& weight, const Tensor& rounded) {
  Arguments p{};
  p.weight_f32 = pointer_if<float>(weight, DType::f32);
  p.weight_bf16 = pointer_if<bf16>(weight, DType::bf16);
  p.rounded = pointer_if<bf16>(rounded, DType::bf16);
  return p;
}

}  // namespace

void compact_adam(const Queue& queue, const CompactAdam& a) {
  Arguments p = weight_arguments(a.weight, a.rounded);
  p.direction_f32 = pointer_if<float>(a.direction, DType::f32);
  p.direction_bf16 = pointer_if<bf16>(a.direction, DType::bf16);
  p.grad = a.grad.as<float>();
  p.m = moments(a.m);
  p.v = moments(a.v);
  p.constants = {a.learning_rate, a.beta1, a.beta2, a.eps, a.weight_decay, a.eps_place};
  p.seed = a.seed;
  p.stream = a.stream;
  p.first_element = a.first_element;
  p.since = a.since;
  p.count = a.grad.numel();
  p.control = a.control.as<double>();
  constexpr int64_t elements = warps * dynamic_block;
  launch("compact_adam", queue,
         {dim3(static_cast<unsigned>((p.count + elements - 1) / elements)), dim3(threads)}, update, p);
}

void apply_step(const Queue& queue, const ApplyStep& a) {
  Arguments p = weight_arguments(a.weight, a.rounded);
  p.grad = a.x.as<float>();
  p.step_size = a.step_size;
  p.decay = a.decay;
  p.seed = a.seed;
  p.stream = a.stream;
  p.first_element = a.first_element;
  p.count = a.x.numel();
  p.control = a.control.as<double>();
  launch("apply_step", queue, {dim3(static_cast<unsigned>((p.count + threads - 1) / threads)), dim3(threads)},
         apply, p);
}

}  // namespace osprey::cuda
