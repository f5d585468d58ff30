#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using test::control;
using test::DeviceCopy;
using test::test_queue;

std::vector<float> normal(size_t n, float scale, uint64_t stream) {
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = scale * random_normal(1, stream, i);
  return x;
}

// A parameter with its state on the device under test.
struct State {
  DeviceCopy<float> p, m, v, g;
  DeviceCopy<bf16> value;
  explicit State(const std::vector<float>& start, int64_t offset = 0)
      : p(start, offset),
        m(std::vector<float>(start.size()), offset),
        v(std::vector<float>(start.size()), offset),
        g(std::vector<float>(start.size()), offset),
        value(std::vector<bf16>(start.size()), offset) {}
  explicit State(size_t n) : State(normal(n, 1, 1)) {}
  void draw_gradient(uint64_t step) { g.set(normal(g.values().size(), 0.1f, 2 + step)); }
  kernels::AdamWPiece piece(int64_t begin, int64_t end) const {
    return {.value = value.range(begin, end),
            .master = p.range(begin, end),
            .grad = g.range(begin, end),
            .m = m.range(begin, end),
            .v = v.range(begin, end)};
  }
  kernels::AdamWPiece piece() const { return piece(0, p.flat().numel()); }
  bool guards_intact() const {
    return p.guards_intact() && m.guards_intact() && v.guards_intact() && g.guards_intact() &&
           value.guards_intact();
  }
};

kernels::AdamW settings() {
  return {.learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
}

void step(std::vector<kernels::AdamWPiece> pieces, const test::Control& c = {}, kernels::AdamW a = settings(),
          int threads = 2) {
  const DeviceCopy<double> scalars = control(c);
  a.pieces = pieces;
  a.control = scalars.flat();
  kernels::adamw(test_queue(threads), a);
}

TEST(AdamW, ThreeStepsAgreeWithTorch) {
  // torch.optim.AdamW in float64 on the same eight numbers; eps is large enough to show where it stands.
  const double golden[8] = {-0.858543201803, -0.626560438361, -0.366179629783, -0.143900550228,
                            0.127371039648,  0.387793288345,  0.607904431979,  0.862546802008};
  std::vector<float> start(8), gradient(8);
  for (int i = 0; i < 8; ++i) start[static_cast<size_t>(i)] = static_cast<float>(i - 3.5) / 4;
  const State s(start);
  kernels::AdamW a = settings();
  a.eps = 1e-2;
  DeviceCopy<float> g(gradient);
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 8; ++i)
      gradient[static_cast<size_t>(i)] = static_cast<float>((7 * i + 5 * t) % 11 - 5) / 64;
    g.set(gradient);
    kernels::AdamWPiece piece = s.piece();
    piece.grad = g.flat();
    step({piece}, {.step = t}, a);
  }
  const std::vector<float> p = s.p.values();
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(p[i], golden[i], 2e-7) << i;
}

TEST(AdamW, FollowsTheDoubleTranscription) {
  const size_t n = 1000;
  State s(n);
  const std::vector<float> start = s.p.values();
  std::vector<double> p(start.begin(), start.end()), m(n), v(n);
  const double lr = 0.01, b1 = 0.9, b2 = 0.95, eps = 1e-8, wd = 0.1, clip = 0.25, factor = 0.5;
  for (int t = 0; t < 20; ++t) {
    s.draw_gradient(static_cast<uint64_t>(t));
    const std::vector<float> grad = s.g.values();
    step({s.piece()}, {.step = t, .learning_rate_factor = factor, .grad_scale = clip});
    for (size_t i = 0; i < n; ++i) {
      const double g = clip * grad[i];
      m[i] = b1 * m[i] + (1 - b1) * g;
      v[i] = b2 * v[i] + (1 - b2) * g * g;
      const double mhat = m[i] / (1 - std::pow(b1, t + 1)), vhat = v[i] / (1 - std::pow(b2, t + 1));
      p[i] -= factor * lr * (wd * p[i] + mhat / (std::sqrt(vhat) + eps));
    }
  }
  const std::vector<float> p1 = s.p.values(), m1 = s.m.values(), v1 = s.v.values();
  const std::vector<bf16> value = s.value.values();
  for (size_t i = 0; i < n; ++i) {
    EXPECT_NEAR(p1[i], p[i], 2e-6);
    EXPECT_NEAR(m1[i], m[i], 1e-7);
    EXPECT_NEAR(v1[i], v[i], 1e-8);
    EXPECT_EQ(value[i].bits, to_bf16(p1[i]).bits);
  }
  EXPECT_TRUE(s.guards_intact());
}

TEST(AdamW, BiasCorrectionHoldsAtTheFirstStepAndFadesAway) {
  // With m and v at zero and eps 0 the first step is a sign; after very many the correction is 1.
  kernels::AdamW a = settings();
  a.weight_decay = 0;
  for (const auto& [at, wanted] :
       {std::pair<int64_t, double>{0, 0.01}, {10000000, 0.01 * 0.1 / std::sqrt(0.05)}}) {
    const State s(std::vector<float>{0});
    const DeviceCopy<float> g({-3.0f});
    kernels::AdamWPiece piece = s.piece();
    piece.grad = g.flat();
    step({piece}, {.step = at}, a);
    EXPECT_NEAR(s.p[0], wanted, 1e-6 * wanted + 1e-9) << at;
  }
}

TEST(AdamW, CuttingAParameterAnywhereChangesNoBit) {
  const int64_t n = 70001;
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, n}, {0, 1, n}, {0, 33, 17000, n}, {0, 64, 129, 50001, 69999, n}}) {
    State whole(n), cut(n);
    for (int t = 0; t < 2; ++t) {
      whole.draw_gradient(static_cast<uint64_t>(t));
      cut.draw_gradient(static_cast<uint64_t>(t));
      step({whole.piece()}, {.step = t}, settings(), 1);
      std::vector<kernels::AdamWPiece> pieces;
      for (size_t c = 0; c + 1 < cuts.size(); ++c) pieces.push_back(cut.piece(cuts[c], cuts[c + 1]));
      step(pieces, {.step = t}, settings(), 3);
    }
    EXPECT_EQ(whole.p.values(), cut.p.values());
    EXPECT_EQ(whole.m.values(), cut.m.values());
    EXPECT_EQ(whole.v.values(), cut.v.values());
    EXPECT_TRUE(cut.guards_intact());
  }
}

TEST(AdamW, HundredsOfPiecesOfAllLengthsAreEachUpdatedOnce) {
  const int64_t n = 5000;
  State whole(n), cut(n);
  whole.draw_gradient(0);
  cut.draw_gradient(0);
  step({whole.piece()});
  std::vector<kernels::AdamWPiece> pieces;
  for (int64_t begin = 0, length = 0; begin < n; begin += length, length = (length + 1) % 29)
    pieces.push_back(cut.piece(begin, std::min(n, begin + length)));
  EXPECT_GT(pieces.size(), 300u);
  step(pieces);
  EXPECT_EQ(whole.p.values(), cut.p.values());
  EXPECT_EQ(whole.m.values(), cut.m.values());
  EXPECT_TRUE(cut.guards_intact());
}

TEST(AdamW, MemoryMayBeginAnywhere) {
  const std::vector<float> start = normal(3001, 1, 1);
  State aligned(start), shifted(start, 1);
  aligned.draw_gradient(0);
  shifted.draw_gradient(0);
  step({aligned.piece()});
  step({shifted.piece()});
  EXPECT_EQ(aligned.p.values(), shifted.p.values());
  EXPECT_EQ(aligned.v.values(), shifted.v.values());
  EXPECT_TRUE(shifted.guards_intact());
}

TEST(AdamW, SmallDecayKeepsItsDigits) {
  // learning_rate * weight_decay = 3e-6: 1 - 3e-6 in fp32 would be off by 1 percent of the decay.
  const State s(std::vector<float>(64, 1.0f));
  double p = 1;
  kernels::AdamW a = settings();
  a.learning_rate = 3e-4;
  a.weight_decay = 0.01;
  for (int t = 0; t < 1000; ++t) {
    step({s.piece()}, {.step = t}, a);
    p -= 3e-6 * p;
  }
  EXPECT_NEAR((1 - s.p[0]) / (1 - p), 1, 0.01);
}

TEST(AdamW, ZeroGradientAndZeroDecayMoveNothing) {
  const State s(100);
  const std::vector<float> before = s.p.values();
  kernels::AdamW a = settings();
  a.weight_decay = 0;
  step({s.piece()}, {}, a);
  EXPECT_EQ(s.p.values(), before);
}

TEST(AdamW, AStepThatIsNotAppliedChangesNothing) {
  const State s(100);
  const std::vector<float> before = s.p.values();
  const DeviceCopy<float> nan(std::vector<float>(100, NAN));
  kernels::AdamWPiece piece = s.piece();
  piece.grad = nan.flat();
  step({piece}, {.apply = 0});
  EXPECT_EQ(s.p.values(), before);
  EXPECT_EQ(s.m.values(), std::vector<float>(100));
  EXPECT_EQ(s.v.values(), std::vector<float>(100));
  for (bf16 v : s.value.values()) EXPECT_EQ(v.bits, 0);
}

TEST(AdamW, Fp32ParametersAreTheirOwnMaster) {
  State a(100), b(100);
  a.draw_gradient(0);
  b.draw_gradient(0);
  kernels::AdamWPiece own = b.piece();
  own.value = own.master;
  step({a.piece()});
  step({own});
  EXPECT_EQ(a.p.values(), b.p.values());
}

TEST(AdamW, WrongShapesAreNamed) {
  const State s(100);
  kernels::AdamWPiece piece = s.piece();
  piece.v = s.v.range(0, 99);
  try {
    step({s.piece(), piece});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[adamw] v must have 100 elements like master, got f32 (99)");
  }
  piece = s.piece();
  piece.value = s.g.flat();
  EXPECT_THROW(step({piece}), Error);
  kernels::AdamW a = settings();
  EXPECT_THROW(kernels::adamw(test_queue(), a), Error);  // no control
}

TEST(AdamW, MetaChecksAndWritesNothing) {
  const Device meta{DeviceKind::meta};
  kernels::AdamWPiece piece;
  for (Tensor* t : {&piece.master, &piece.grad, &piece.m, &piece.v})
    *t = make_tensor(nullptr, {10}, DType::f32, meta);
  piece.value = make_tensor(nullptr, {10}, DType::bf16, meta);
  kernels::AdamW a = settings();
  a.control = make_tensor(nullptr, {kernels::step_scalars}, DType::f64, meta);
  a.pieces = {&piece, 1};
  kernels::adamw(Queue{meta, 1}, a);
  piece.m.shape = {11};
  EXPECT_THROW(kernels::adamw(Queue{meta, 1}, a), Error);
}

}  // namespace
}  // namespace osprey
