#pragma once
// Counter-based randomness: every draw is a pure function of (seed, stream, index), so nothing ticks,
// a replay is bit-identical, and the number of ranks or threads never matters.
// Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10.

#include "kernels/numerics/bf16.h"

namespace osprey {

struct Philox {
  uint32_t v[4];
};

/// 128 random bits for counter (index, stream) under key `seed`.
OSPREY_HD Philox philox(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox{{c0, c1, c2, c3}};
}

/// 64 random bits.
OSPREY_HD uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t index) {
  const Philox p = philox(seed, stream, index);
  return (static_cast<uint64_t>(p.v[0]) << 32) | p.v[1];
}

/// Uniform in the open interval (0, 1), from 32 bits.
OSPREY_HD float unit_float(uint32_t bits) {
  return (static_cast<float>(bits >> 8) + 0.5f) * (1.0f / 16777216.0f);
}

/// Uniform in (0, 1).
OSPREY_HD float random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return unit_float(philox(seed, stream, index).v[0]);
}

}  // namespace osprey
