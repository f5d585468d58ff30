#include "kernels/cpu/isa/adamw.h"

namespace osprey::cpu::OSPREY_ISA {

// Always whole blocks of this many elements, tails included (through a copy): every element goes
// through the same instructions, so a parameter may be cut over ranks anywhere without a changed bit.
constexpr int64_t block = 64;

static inline void update_block(float* __restrict master, float* __restrict m, float* __restrict v,
                                const float* __restrict grad, const AdamWFactors& f) {
  for (int64_t i = 0; i < block; ++i) adamw_element(master[i], m[i], v[i], grad[i], f);
}

static void update(bf16* value, float* master, float* m, float* v, const float* grad, int64_t n,
                   const AdamWFactors& factors) {
  const AdamWFactors f = factors;
  int64_t i = 0;
  for (; i + block <= n; i += block) {
    update_block(master + i, m + i, v + i, grad + i, f);
    if (value)
      for (int64_t j = 0; j < block; ++j) value[i + j] = to_bf16(master[i + j]);
  }
  if (i == n) return;
  const int64_t rest = n - i;
  const size_t bytes = static_cast<size_t>(rest) * sizeof(float);
  float p[block] = {}, m1[block] = {}, v1[block] = {}, g[block] = {};
  memcpy(p, master + i, bytes);
  memcpy(m1, m + i, bytes);
  memcpy(v1, v + i, bytes);
  memcpy(g, grad + i, bytes);
  update_block(p, m1, v1, g, f);
  memcpy(master + i, p, bytes);
  memcpy(m + i, m1, bytes);
  memcpy(v + i, v1, bytes);
  if (value)
    for (int64_t j = 0; j < rest; ++j) value[i + j] = to_bf16(p[j]);
}

extern const AdamWTable adamw_table;
const AdamWTable adamw_table = {update};

}  // namespace osprey::cpu::OSPREY_ISA
