#include "kernels/rope.h"

#include <gtest/gtest.h>

#include "tests/oracle/rope.h"
#include "tests/support/buffer.h"

using namespace osprey;
using osprey::test::Buffer;

namespace {

struct Tensors {
  int64_t rows, heads, kv_heads, size;
  Buffer qkv, positions, q_weight, k_weight, saved, partial, dq_weight, dk_weight;

  Tensors(DType dtype, int64_t n, int64_t h, int64_t g, int64_t d)
      : rows(n),
        heads(h),
        kv_heads(g),
        size(d),
        qkv({n, (h + 2 * g) * d}, dtype, 5),
        positions({n}, DType::i32),
        q_weight({d}, dtype),
        k_weight({d}, dtype),
        saved({n, (h + g) * d}, dtype, 3),
        partial({kernels::rope_partials({}, n), 2 * d}, DType::f32),
        dq_weight({d}, DType::f32),
        dk_weight({d}, DType::f32) {
    qkv.fill(1);
    q_weight.fill(2);
    k_weight.fill(3);
    for (int64_t i = 0; i < n; ++i) positions.set(0, i, static_cast<double>((i * 37) % 1000));
  }
  Tensor q() const { return qkv.tensor().columns(0, heads * size); }
  Tensor k() const { return qkv.tensor().columns(heads * size, (heads + kv_heads) * size); }
  kernels::RopeForward forward(bool norms) {
    kernels::RopeForward a{.q = q(), .k = k(), .positions = positions, .head_size = size, .theta = 5e5};
    if (norms) a.q_weight = q_weight, a.k_weight = k_weight, a.saved = saved;
    return a;
  }
  kernels::RopeBackward backward(bool norms) {
    kernels::RopeBackward a{.dx_q = q(),
                            .dx_k = k(),
                            .dy_q = q(),
                            .dy_k = k(),
                            .positions = positions,
                            .head_size = size,
                            .theta = 5e5};
    if (norms)
      a.q_weight = q_weight, a.k_weight = k_weight, a.saved = saved, a.partial = partial,
      a.dq_weight = {dq_weight, false}, a.dk_weight = {dk_weight, false};
    return a;
  }
  bool guards_intact() const {
    for (const Buffer* b : {&qkv, &positions, &q_weight, &k_weight, &saved, &partial, &dq_weight, &dk_weight})
      if (!b->guards_intact()) return false;
    return true;
  }
};

}  // namespace

TEST(RopeKernel, AgreesWithTheOracleAtLongPositionsAndLeavesValuesAlone) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t size : {8, 24, 64, 128, 256})
      for (bool norms : {false, true}) {
        Tensors t(dtype, 33, 2, 1, size);
        const std::vector<double> x = t.qkv.values(), qw = t.q_weight.values(), kw = t.k_weight.values();
        std::vector<int> positions;
        for (int64_t i = 0; i < 33; ++i) positions.push_back(static_cast<int>(t.positions.get(0, i)));
        kernels::rope_forward({.device = {}, .threads = 2}, t.forward(norms));
        const auto expected = oracle::rope(x, static_cast<size_t>(4 * size), 3, static_cast<size_t>(size),
                                           positions, 5e5, 1e-6, [&](size_t h) {
                                             return !norms ? nullptr : h < 2 ? &qw : &kw;
                                           });
        const std::vector<double> got = t.qkv.values();
        double worst = 0, most = 0;
        for (size_t i = 0; i < got.size(); ++i) {
          worst = std::max(worst, std::abs(got[i] - expected[i]));
          most = std::max(most, std::abs(expected[i]));
          if (i % static_cast<size_t>(4 * size) >= static_cast<size_t>(3 * size)) {
            ASSERT_EQ(got[i], x[i]);
          }
        }
        EXPECT_LT(worst / most, dtype == DType::f32 ? 1e-6 : 4e-3)
            << name(dtype) << " " << size << " " << norms;
        EXPECT_TRUE(t.guards_intact());
      }
}

TEST(RopeKernel, FrequenciesAreThoseOfLlama3) {
  // theta 5e5, head size 128, position 1: angle i is theta^(-2i/128).
  Buffer q({1, 128}, DType::f32), k({1, 128}, DType::f32), positions({1}, DType::i32);
  q.fill_value(0);
  k.fill_value(0);
  for (int64_t i = 0; i < 64; ++i) q.set(0, i, 1.0);
  positions.set(0, 0, 1);
  kernels::rope_forward({}, {.q = q, .k = k, .positions = positions, .head_size = 128, .theta = 5e5});
  EXPECT_NEAR(q.get(0, 64), std::sin(1.0), 1e-6);
  EXPECT_NEAR(q.get(0, 65), std::sin(0.8146172), 1e-6);
  EXPECT_NEAR(q.get(0, 64 + 16), std::sin(0.03760603), 1e-6);
  EXPECT_NEAR(q.get(0, 16), std::cos(0.03760603), 1e-6);
}

TEST(RopeKernel, BackwardOfTheTurnIsTheTurnBack) {
  Tensors t(DType::f32, 40, 3, 1, 32);
  const std::vector<double> before = t.qkv.values();
  kernels::rope_forward({.device = {}, .threads = 2}, t.forward(false));
  kernels::rope_backward({.device = {}, .threads = 2}, t.backward(false));
  const std::vector<double> after = t.qkv.values();
  for (size_t i = 0; i < before.size(); ++i) ASSERT_NEAR(after[i], before[i], 1e-6);
}

TEST(RopeKernel, DoesNotDependOnTheNumberOfThreads) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Tensors one(dtype, 300, 2, 2, 48);
    kernels::rope_forward({.device = {}, .threads = 1}, one.forward(true));
    kernels::rope_backward({.device = {}, .threads = 1}, one.backward(true));
    for (int threads : {2, 3}) {
      Tensors other(dtype, 300, 2, 2, 48);
      kernels::rope_forward({.device = {}, .threads = threads}, other.forward(true));
      kernels::rope_backward({.device = {}, .threads = threads}, other.backward(true));
      EXPECT_TRUE(one.qkv.same_bits(other.qkv) && one.dq_weight.same_bits(other.dq_weight) &&
                  one.dk_weight.same_bits(other.dk_weight) && one.saved.same_bits(other.saved));
    }
  }
}
