#include "kernels/cpu/isa/compact_adam.h"

namespace osprey::cpu::OSPREY_ISA {

namespace {

/// The draws of a block, one array for each use, so that loops over them vectorise.
struct Draws {
  uint32_t weight[dynamic_block], m[dynamic_block], v[dynamic_block];
};

inline void draw(const CompactRange& r, int64_t at, Draws& d) {
  for (int64_t i = 0; i < dynamic_block; ++i) {
    const Philox bits = update_draws(r.seed, r.stream, r.step, r.first_element + at + i);
    d.weight[i] = bits.v[0];
    d.m[i] = bits.v[1];
    d.v[i] = bits.v[2];
  }
}

template <DynamicCode kind>
inline void load(const CompactRange::Moments& from, int64_t at, int64_t n, float* x) {
  for (int64_t i = n; i < dynamic_block; ++i) x[i] = 0;
  if (from.f32)
    for (int64_t i = 0; i < n; ++i) x[i] = from.f32[at + i];
  else if (from.rounded)
    for (int64_t i = 0; i < n; ++i) x[i] = to_float(from.rounded[at + i]);
  else
    for (int64_t i = 0; i < n; ++i)
      x[i] = dynamic_decode<kind>(from.codes[at + i]) * from.scales[at / dynamic_block];
}

template <DynamicCode kind>
inline void store(const CompactRange::Moments& to, int64_t at, int64_t n, const float* x,
                  const uint32_t* bits) {
  if (to.f32) {
    for (int64_t i = 0; i < n; ++i) to.f32[at + i] = x[i];
  } else if (to.rounded) {
    for (int64_t i = 0; i < n; ++i) to.rounded[at + i] = to_bf16_by_chance(x[i], bits[i]);
  } else {
    float largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = fmaxf(largest, fabsf(x[i]));
    to.scales[at / dynamic_block] = largest;
    const float inverse = largest > 0 ? 1 / largest : 0;
    for (int64_t i = 0; i < n; ++i)
      to.codes[at + i] = dynamic_encode<kind>(fminf(1.0f, fmaxf(-1.0f, x[i] * inverse)));
  }
}

inline void load_weight(const CompactRange& r, int64_t at, int64_t n, float* w) {
  for (int64_t i = 0; i < n; ++i)
    w[i] = r.weight_f32 ? r.weight_f32[at + i] : to_float(r.weight_bf16[at + i]);
  for (int64_t i = n; i < dynamic_block; ++i) w[i] = 0;
}

inline void store_weight(const CompactRange& r, int64_t at, int64_t n, const float* w, const uint32_t* bits) {
  if (r.weight_bf16) {
    for (int64_t i = 0; i < n; ++i) r.weight_bf16[at + i] = to_bf16_by_chance(w[i], bits[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) r.weight_f32[at + i] = w[i];
  if (!r.rounded) return;
  for (int64_t i = 0; i < n; ++i) r.rounded[at + i] = to_bf16(w[i]);
}

// Always whole blocks, tails included (through copies): every element goes through the same instructions.
void update_block(const CompactRange& r, int64_t at, int64_t n, bool draws, const AdamWFactors& f,
                  float first_scale, float learning_rate) {
  float m[dynamic_block], v[dynamic_block], g[dynamic_block] = {}, d[dynamic_block];
  Draws bits;
  if (draws) draw(r, at, bits);
  load<DynamicCode::with_sign>(r.m, at, n, m);
  load<DynamicCode::without_sign>(r.v, at, n, v);
  memcpy(g, r.grad + at, static_cast<size_t>(n) * sizeof(float));
  for (int64_t i = 0; i < dynamic_block; ++i) d[i] = adam_direction(m[i], v[i], g[i], f, first_scale);
  store<DynamicCode::with_sign>(r.m, at, n, m, bits.m);
  store<DynamicCode::without_sign>(r.v, at, n, v, bits.v);
  if (r.direction_f32) {
    memcpy(r.direction_f32 + at, d, static_cast<size_t>(n) * sizeof(float));
  } else if (r.direction_bf16) {
    for (int64_t i = 0; i < n; ++i) r.direction_bf16[at + i] = to_bf16(d[i]);
  } else {
    float w[dynamic_block];
    load_weight(r, at, n, w);
    for (int64_t i = 0; i < dynamic_block; ++i) w[i] -= f.decay * w[i] + learning_rate * d[i];
    store_weight(r, at, n, w, bits.weight);
  }
}

void update(const CompactRange& range, int64_t begin, int64_t end, const AdamWFactors& factors,
            float first_scale, float learning_rate) {
  const bool draws = range.weight_bf16 || range.m.rounded || range.v.rounded;
  for (int64_t at = begin; at < end; at += dynamic_block)
    update_block(range, at, at + dynamic_block < end ? dynamic_block : end - at, draws, factors, first_scale,
                 learning_rate);
}

void apply(const CompactRange& range, const float* x, int64_t begin, int64_t end, float step_size,
           float decay) {
  for (int64_t at = begin; at < end; at += dynamic_block) {
    const int64_t n = at + dynamic_block < end ? dynamic_block : end - at;
    float w[dynamic_block], by[dynamic_block] = {};
    Draws bits;
    if (range.weight_bf16) draw(range, at, bits);
    load_weight(range, at, n, w);
    memcpy(by, x + at, static_cast<size_t>(n) * sizeof(float));
    for (int64_t i = 0; i < dynamic_block; ++i) w[i] -= decay * w[i] + step_size * by[i];
    store_weight(range, at, n, w, bits.weight);
  }
}

}  // namespace

extern const CompactAdamTable compact_adam_table;
const CompactAdamTable compact_adam_table = {update, apply};

}  // namespace osprey::cpu::OSPREY_ISA
