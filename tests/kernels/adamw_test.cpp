#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

struct State {
  std::vector<float> p, m, v, g;
  std::vector<bf16> value;
  explicit State(size_t n, uint64_t seed = 1) : p(n), m(n), v(n), g(n), value(n) {
    for (size_t i = 0; i < n; ++i) p[i] = random_normal(seed, 1, i);
  }
  void draw_gradient(uint64_t step) {
    for (size_t i = 0; i < g.size(); ++i) g[i] = 0.1f * random_normal(7, 2 + step, i);
  }
  static Tensor flat(float* data, int64_t n) { return make_tensor(data, {n}, DType::f32); }
  kernels::AdamW args(int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    return {.value = make_tensor(value.data() + begin, {n}, DType::bf16),
            .master = flat(p.data() + begin, n),
            .grad = flat(g.data() + begin, n),
            .m = flat(m.data() + begin, n),
            .v = flat(v.data() + begin, n),
            .learning_rate = 0.01,
            .beta1 = 0.9,
            .beta2 = 0.95,
            .eps = 1e-8,
            .weight_decay = 0.1};
  }
  kernels::AdamW args() { return args(0, static_cast<int64_t>(p.size())); }
};

TEST(AdamW, ThreeStepsAgreeWithTorch) {
  // torch.optim.AdamW in float64 on the same eight numbers; eps is large enough to show where it stands.
  const double golden[8] = {-0.858543201803, -0.626560438361, -0.366179629783, -0.143900550228,
                            0.127371039648,  0.387793288345,  0.607904431979,  0.862546802008};
  State s(8);
  for (int i = 0; i < 8; ++i) s.p[static_cast<size_t>(i)] = static_cast<float>(i - 3.5) / 4;
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 8; ++i)
      s.g[static_cast<size_t>(i)] = static_cast<float>((7 * i + 5 * t) % 11 - 5) / 64;
    kernels::AdamW a = s.args();
    a.eps = 1e-2;
    a.step = t;
    kernels::adamw({}, a);
  }
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(s.p[i], golden[i], 2e-7) << i;
}

TEST(AdamW, FollowsTheDoubleTranscription) {
  const size_t n = 1000;
  State s(n);
  std::vector<double> p(s.p.begin(), s.p.end()), m(n), v(n);
  const double lr = 0.01, b1 = 0.9, b2 = 0.95, eps = 1e-8, wd = 0.1, clip = 0.25;
  for (int t = 0; t < 20; ++t) {
    s.draw_gradient(static_cast<uint64_t>(t));
    kernels::AdamW a = s.args();
    a.step = t;
    a.grad_scale = clip;
    kernels::adamw(Queue{.device = {}, .threads = 2}, a);
    for (size_t i = 0; i < n; ++i) {
      const double g = clip * s.g[i];
      m[i] = b1 * m[i] + (1 - b1) * g;
      v[i] = b2 * v[i] + (1 - b2) * g * g;
      const double mhat = m[i] / (1 - std::pow(b1, t + 1)), vhat = v[i] / (1 - std::pow(b2, t + 1));
      p[i] -= lr * (wd * p[i] + mhat / (std::sqrt(vhat) + eps));
    }
  }
  for (size_t i = 0; i < n; ++i) {
    EXPECT_NEAR(s.p[i], p[i], 2e-6);
    EXPECT_NEAR(s.m[i], m[i], 1e-7);
    EXPECT_NEAR(s.v[i], v[i], 1e-8);
    EXPECT_EQ(s.value[i].bits, to_bf16(s.p[i]).bits);
  }
}

TEST(AdamW, CuttingAParameterAnywhereChangesNoBit) {
  const int64_t n = 70001;
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, n}, {0, 1, n}, {0, 33, 17000, n}, {0, 64, 129, 50001, 69999, n}}) {
    State whole(n), cut(n);
    for (int t = 0; t < 3; ++t) {
      whole.draw_gradient(static_cast<uint64_t>(t));
      cut.draw_gradient(static_cast<uint64_t>(t));
      kernels::AdamW a = whole.args();
      a.step = t;
      kernels::adamw(Queue{.device = {}, .threads = 1}, a);
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        kernels::AdamW b = cut.args(cuts[c], cuts[c + 1]);
        b.step = t;
        kernels::adamw(Queue{.device = {}, .threads = 3}, b);
      }
    }
    EXPECT_EQ(whole.p, cut.p);
    EXPECT_EQ(whole.m, cut.m);
    EXPECT_EQ(whole.v, cut.v);
  }
}

TEST(AdamW, SmallDecayKeepsItsDigits) {
  // learning_rate * weight_decay = 3e-6: 1 - 3e-6 in fp32 would be off by 1 percent of the decay.
  State s(64);
  std::fill(s.p.begin(), s.p.end(), 1.0f);
  double p = 1;
  for (int t = 0; t < 1000; ++t) {
    kernels::AdamW a = s.args();
    a.learning_rate = 3e-4;
    a.weight_decay = 0.01;
    a.step = t;
    kernels::adamw({}, a);
    p -= 3e-6 * p;
  }
  EXPECT_NEAR((1 - s.p[0]) / (1 - p), 1, 0.01);
}

TEST(AdamW, ZeroGradientAndZeroDecayMoveNothing) {
  State s(100);
  const std::vector<float> before = s.p;
  kernels::AdamW a = s.args();
  a.weight_decay = 0;
  kernels::adamw({}, a);
  EXPECT_EQ(s.p, before);
}

TEST(AdamW, Fp32ParametersAreTheirOwnMaster) {
  State a(100), b(100);
  a.draw_gradient(0);
  b.draw_gradient(0);
  kernels::AdamW x = a.args(), y = b.args();
  y.value = y.master;
  kernels::adamw({}, x);
  kernels::adamw({}, y);
  EXPECT_EQ(a.p, b.p);
}

TEST(AdamW, WrongShapesAreNamed) {
  State s(100);
  kernels::AdamW a = s.args();
  a.v = State::flat(s.v.data(), 99);
  try {
    kernels::adamw({}, a);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[adamw] v must have 100 elements like master, got f32 (99)");
  }
  a = s.args();
  a.value = State::flat(s.g.data(), 100);
  EXPECT_THROW(kernels::adamw({}, a), Error);
}

TEST(AdamW, MetaChecksAndWritesNothing) {
  const Device meta{DeviceKind::meta};
  kernels::AdamW a;
  for (Tensor* t : {&a.master, &a.grad, &a.m, &a.v}) *t = make_tensor(nullptr, {10}, DType::f32, meta);
  a.value = make_tensor(nullptr, {10}, DType::bf16, meta);
  kernels::adamw(Queue{meta, 1}, a);
  a.m.shape = {11};
  EXPECT_THROW(kernels::adamw(Queue{meta, 1}, a), Error);
}

}  // namespace
}  // namespace osprey
