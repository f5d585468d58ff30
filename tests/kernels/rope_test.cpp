#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/numerics/rope.h"
#include "tests/oracle/rope.h"
#include "tests/support/on_device.h"

using namespace osprey;
using osprey::test::Buffer;
using osprey::test::OnDevice;

namespace {

enum class Norms { none, queries, keys, both };

struct Tensors {
  int64_t rows, heads, kv_heads, size, shift;
  Norms norms;
  OnDevice on;
  Buffer qkv, positions, q_weight, k_weight, saved, partial, dq_weight, dk_weight;

  /// The heads begin `shift_by` columns into their rows.
  Tensors(DType dtype, int64_t n, int64_t h, int64_t g, int64_t d, Norms which, int threads = 2,
          int64_t shift_by = 0)
      : rows(n),
        heads(h),
        kv_heads(g),
        size(d),
        shift(shift_by),
        norms(which),
        on(threads),
        qkv({n, shift_by + (h + 2 * g) * d}, dtype, shift_by == 0 ? 8 : 5),
        positions({n}, DType::i32),
        q_weight({d}, dtype),
        k_weight({d}, dtype),
        saved({n, (h + g) * d}, dtype, shift_by == 0 ? 8 : 3),
        partial({kernels::rope_partials(on.queue, n), 2 * d}, DType::f32),
        dq_weight({d}, DType::f32),
        dk_weight({d}, DType::f32) {
    qkv.fill(1);
    q_weight.fill(2);
    k_weight.fill(3);
    for (int64_t i = 0; i < n; ++i) positions.set(0, i, static_cast<double>((i * 37) % 1000));
  }
  int64_t cols() const { return qkv.tensor().cols(); }
  Tensor q() { return on(qkv).columns(shift, shift + heads * size); }
  Tensor k() { return on(qkv).columns(shift + heads * size, shift + (heads + kv_heads) * size); }
  bool q_norm() const { return norms == Norms::queries || norms == Norms::both; }
  bool k_norm() const { return norms == Norms::keys || norms == Norms::both; }
  void forward() {
    kernels::RopeForward a{.q = q(), .k = k(), .positions = on(positions), .head_size = size, .theta = 5e5};
    if (q_norm()) a.q_weight = on(q_weight);
    if (k_norm()) a.k_weight = on(k_weight);
    if (norms != Norms::none) a.saved = on(saved);
    kernels::rope_forward(on.queue, a);
    on.fetch();
  }
  kernels::RopeBackward backward_args() {
    kernels::RopeBackward a{.dx_q = q(),
                            .dx_k = k(),
                            .dy_q = q(),
                            .dy_k = k(),
                            .positions = on(positions),
                            .head_size = size,
                            .theta = 5e5};
    if (norms != Norms::none) a.saved = on(saved), a.partial = on(partial);
    if (q_norm()) a.q_weight = on(q_weight), a.dq_weight = {on(dq_weight), false};
    if (k_norm()) a.k_weight = on(k_weight), a.dk_weight = {on(dk_weight), false};
    return a;
  }
  void backward() {
    kernels::rope_backward(on.queue, backward_args());
    on.fetch();
  }
  std::vector<double> oracle(const std::vector<double>& x) const {
    const std::vector<double> qw = q_weight.values(), kw = k_weight.values();
    std::vector<double> y = x;
    std::vector<int> at;
    for (int64_t i = 0; i < rows; ++i) at.push_back(static_cast<int>(positions.get(0, i)));
    // The oracle's heads begin with the row.
    std::vector<double> packed;
    const int64_t width = cols() - shift;
    for (int64_t r = 0; r < rows; ++r)
      packed.insert(packed.end(), x.begin() + r * cols() + shift, x.begin() + (r + 1) * cols());
    packed =
        oracle::rope(packed, static_cast<size_t>(width), static_cast<size_t>(heads + kv_heads),
                     static_cast<size_t>(size), at, 5e5, 1e-6, [&](size_t h) -> const std::vector<double>* {
                       if (h < static_cast<size_t>(heads)) return q_norm() ? &qw : nullptr;
                       return k_norm() ? &kw : nullptr;
                     });
    for (int64_t r = 0; r < rows; ++r)
      std::copy(packed.begin() + r * width, packed.begin() + (r + 1) * width, y.begin() + r * cols() + shift);
    return y;
  }
  bool guards_intact() const {
    for (const Buffer* b : {&qkv, &positions, &q_weight, &k_weight, &saved, &partial, &dq_weight, &dk_weight})
      if (!b->guards_intact()) return false;
    return true;
  }
};

/// max |got - want| / max |want| over the turned heads; the others have not changed at all.
double error(const Tensors& t, const std::vector<double>& want, const std::vector<double>& before) {
  const std::vector<double> got = t.qkv.values();
  double worst = 0, most = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t c = static_cast<int64_t>(i) % t.cols() - t.shift;
    if (c < 0 || c >= (t.heads + t.kv_heads) * t.size) {
      EXPECT_EQ(got[i], before[i]);
      continue;
    }
    worst = std::max(worst, std::abs(got[i] - want[i]));
    most = std::max(most, std::abs(want[i]));
  }
  return worst / most;
}

}  // namespace

TEST(RopeKernel, AgreesWithTheOracleAtLongPositionsAndLeavesValuesAlone) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t size : {8, 24, 64, 128, 256})
      for (Norms norms : {Norms::none, Norms::queries, Norms::keys, Norms::both})
        for (int64_t shift : {0, 3}) {
          SCOPED_TRACE(fmt::format("{} {} {} {}", name(dtype), size, static_cast<int>(norms), shift));
          Tensors t(dtype, 33, 2, 1, size, norms, 2, shift);
          const std::vector<double> x = t.qkv.values();
          t.forward();
          EXPECT_LT(error(t, t.oracle(x), x), dtype == DType::f32 ? 1e-6 : 4e-3);
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
  OnDevice on;
  kernels::rope_forward(on.queue,
                        {.q = on(q), .k = on(k), .positions = on(positions), .head_size = 128, .theta = 5e5});
  on.fetch();
  EXPECT_NEAR(q.get(0, 64), std::sin(1.0), 1e-6);
  EXPECT_NEAR(q.get(0, 65), std::sin(0.8146172), 1e-6);
  EXPECT_NEAR(q.get(0, 64 + 16), std::sin(0.03760603), 1e-6);
  EXPECT_NEAR(q.get(0, 16), std::cos(0.03760603), 1e-6);
}

/// theta 5e5, head size 128: frequencies and magnitude as transformers 4.52 computes them
/// (modeling_rope_utils.ROPE_INIT_FUNCTIONS).
struct Stretched {
  RopeScaling scaling;
  std::vector<std::pair<int64_t, double>> frequencies;
};
const Stretched stretched[] = {
    {{.kind = RopeScaling::Kind::linear, .factor = 3},
     {{0, 0.3333333432674408}, {20, 0.005520146805793047}, {63, 8.183802151506825e-07}}},
    {{.kind = RopeScaling::Kind::llama3, .factor = 8, .original_len = 8192, .slow = 1, .fast = 4},
     {{0, 1.0},
      {5, 0.3587302267551422},
      {26, 0.00483942124992609},
      {30, 0.0013718936825171113},
      {34, 0.0001785077911335975},
      {63, 3.068925877869333e-07}}},
    {{.kind = RopeScaling::Kind::yarn,
      .factor = 4,
      .original_len = 32768,
      .slow = 1,
      .fast = 32,
      .magnitude = 1.138629436111989},
     {{0, 1.0},
      {20, 0.016560440883040428},
      {26, 0.004436136223375797},
      {30, 0.0015983396442607045},
      {40, 9.141606278717518e-05},
      {63, 6.137851755738666e-07}}}};

TEST(RopeKernel, ScaledFrequenciesAreThoseOfTransformers) {
  for (const Stretched& s : stretched) {
    Buffer q({1, 128}, DType::f32), k({1, 128}, DType::f32), positions({1}, DType::i32);
    q.fill_value(0);
    k.fill_value(0);
    for (int64_t i = 0; i < 64; ++i) q.set(0, i, 1.0);
    positions.set(0, 0, 1);
    OnDevice on;
    kernels::rope_forward(on.queue, {.q = on(q),
                                     .k = on(k),
                                     .positions = on(positions),
                                     .head_size = 128,
                                     .theta = 5e5,
                                     .scaling = s.scaling});
    on.fetch();
    for (const auto& [i, frequency] : s.frequencies) {
      EXPECT_NEAR(q.get(0, i), s.scaling.magnitude * std::cos(frequency), 2e-7) << i;
      EXPECT_NEAR(q.get(0, 64 + i) / (s.scaling.magnitude * std::sin(frequency)), 1, 1e-5) << i;
    }
  }
}

TEST(RopeKernel, ThereAndBackAScaledTurnMultipliesByTheSquareOfItsMagnitude) {
  for (const Stretched& s : stretched) {
    Tensors t(DType::f32, 20, 2, 1, 128, Norms::none);
    const std::vector<double> before = t.qkv.values();
    kernels::rope_forward(t.on.queue, {.q = t.q(),
                                       .k = t.k(),
                                       .positions = t.on(t.positions),
                                       .head_size = 128,
                                       .theta = 5e5,
                                       .scaling = s.scaling});
    t.on.fetch();
    EXPECT_NE(t.qkv.values(), before);
    kernels::RopeBackward backward = t.backward_args();
    backward.scaling = s.scaling;
    kernels::rope_backward(t.on.queue, backward);
    t.on.fetch();
    const double square = s.scaling.magnitude * s.scaling.magnitude;
    const std::vector<double> after = t.qkv.values();
    for (int64_t i = 0; i < t.qkv.tensor().numel(); ++i)
      ASSERT_NEAR(after[static_cast<size_t>(i)],
                  before[static_cast<size_t>(i)] * (i % t.cols() < 3 * 128 ? square : 1), 2e-6);
  }
}

TEST(RopeKernel, AScaledTurnFollowsTheNorms) {
  // Where nothing turns, at position 0, only the magnitude is left.
  const RopeScaling& yarn = stretched[2].scaling;
  Tensors t(DType::f32, 4, 2, 1, 64, Norms::both), plain(DType::f32, 4, 2, 1, 64, Norms::both);
  for (Tensors* each : {&t, &plain})
    for (int64_t i = 0; i < 4; ++i) each->positions.set(0, i, 0);
  plain.forward();
  kernels::rope_forward(t.on.queue, {.q = t.q(),
                                     .k = t.k(),
                                     .positions = t.on(t.positions),
                                     .head_size = 64,
                                     .theta = 5e5,
                                     .scaling = yarn,
                                     .q_weight = t.on(t.q_weight),
                                     .k_weight = t.on(t.k_weight)});
  t.on.fetch();
  for (int64_t i = 0; i < 3 * 64; ++i)
    ASSERT_NEAR(t.qkv.get(0, i), yarn.magnitude * plain.qkv.get(0, i), 2e-6);
}

TEST(RopeKernel, RefusesAScalingThatIsNone) {
  Buffer q({1, 8}, DType::f32), k({1, 8}, DType::f32), positions({1}, DType::i32);
  positions.set(0, 0, 0);
  OnDevice on;
  const auto refuses = [&](const RopeScaling& s) {
    EXPECT_THROW(
        kernels::rope_forward(
            on.queue, {.q = on(q), .k = on(k), .positions = on(positions), .head_size = 8, .scaling = s}),
        Error);
  };
  refuses({.kind = RopeScaling::Kind::linear, .factor = 0.5});
  refuses({.kind = RopeScaling::Kind::llama3, .factor = 2});
  refuses({.kind = RopeScaling::Kind::llama3, .factor = 2, .original_len = 8, .slow = 4, .fast = 4});
  refuses({.kind = RopeScaling::Kind::yarn,
           .factor = 2,
           .original_len = 8,
           .slow = 1,
           .fast = 4,
           .magnitude = 0});
}

TEST(RopeKernel, BackwardOfTheTurnIsTheTurnBack) {
  Tensors t(DType::f32, 40, 3, 1, 32, Norms::none);
  const std::vector<double> before = t.qkv.values();
  t.forward();
  t.backward();
  const std::vector<double> after = t.qkv.values();
  for (size_t i = 0; i < before.size(); ++i) ASSERT_NEAR(after[i], before[i], 1e-6);
}

TEST(RopeKernel, TurnsBackOneSideAloneWhenTheOtherIsNotWanted) {
  for (Norms norms : {Norms::none, Norms::both}) {
    Tensors both(DType::bf16, 40, 3, 2, 64, norms), keys(DType::bf16, 40, 3, 2, 64, norms);
    both.forward();
    keys.forward();
    const std::vector<double> before = keys.qkv.values();
    both.backward();
    kernels::RopeBackward a = keys.backward_args();
    a.dx_q = {};
    kernels::rope_backward(keys.on.queue, a);
    keys.on.fetch();
    for (int64_t i = 0; i < keys.qkv.tensor().numel(); ++i)
      ASSERT_EQ(keys.qkv.get(i), i % keys.cols() < 3 * 64 ? before[static_cast<size_t>(i)] : both.qkv.get(i));
    if (norms == Norms::both) {
      EXPECT_TRUE(both.dq_weight.same_bits(keys.dq_weight) && both.dk_weight.same_bits(keys.dk_weight));
    }
  }
}

TEST(RopeKernel, GradientsOfNormWeightsAreThoseOfTheOracleByDifferences) {
  for (int64_t shift : {0, 3}) {
    Tensors t(DType::f32, 50, 3, 2, 16, Norms::both, 2, shift);
    const std::vector<double> x = t.qkv.values();
    t.forward();
    Buffer dy = std::move(Buffer(t.qkv.tensor().shape, DType::f32).fill(9));
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t c = 0; c < t.cols(); ++c) t.qkv.set(r, c, dy.get(r, c));
    const auto loss = [&] {
      const std::vector<double> y = t.oracle(x), d = dy.values();
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * d[i];
      return sum;
    };
    OnDevice fresh;
    kernels::RopeBackward a{.dx_q = fresh(t.qkv).columns(shift, shift + 48),
                            .dx_k = fresh(t.qkv).columns(shift + 48, shift + 80),
                            .dq_weight = {fresh(t.dq_weight), false},
                            .dk_weight = {fresh(t.dk_weight), false},
                            .dy_q = fresh(t.qkv).columns(shift, shift + 48),
                            .dy_k = fresh(t.qkv).columns(shift + 48, shift + 80),
                            .positions = fresh(t.positions),
                            .head_size = 16,
                            .theta = 5e5,
                            .q_weight = fresh(t.q_weight),
                            .k_weight = fresh(t.k_weight),
                            .saved = fresh(t.saved),
                            .partial = fresh(t.partial)};
    kernels::rope_backward(fresh.queue, a);
    fresh.fetch();
    for (auto [weight, gradient] : {std::pair{&t.q_weight, &t.dq_weight}, {&t.k_weight, &t.dk_weight}})
      for (int64_t i = 0; i < 16; ++i) {
        const double w = weight->get(i), h = 1.0 / 64;  // the loss is linear in the weights
        weight->set(0, i, w + h);
        const double up = loss(), stepped = weight->get(i) - w;
        weight->set(0, i, w);
        EXPECT_NEAR(gradient->get(i), (up - loss()) / stepped, 1e-4) << i;
      }
    EXPECT_TRUE(t.guards_intact());
  }
}

TEST(RopeKernel, ANegativePositionIsRefusedOrMakesItsRowNan) {
  for (Norms norms : {Norms::none, Norms::both}) {
    Tensors t(DType::bf16, 3, 1, 1, 16, norms);
    t.positions.set(0, 1, -1);
    if (t.on.queue.device.kind == DeviceKind::cpu) {
      EXPECT_THROW(t.forward(), Error);
      continue;
    }
    t.forward();
    for (int64_t c = 0; c < t.cols(); ++c) {
      EXPECT_EQ(std::isnan(t.qkv.get(1, c)), c < 32);
      EXPECT_FALSE(std::isnan(t.qkv.get(0, c)) || std::isnan(t.qkv.get(2, c)));
    }
  }
}

TEST(RopeNumerics, AnglesOfAMillionPositionsAreThoseOfDoubles) {
  double worst = 0;
  for (double theta : {1e4, 5e5, 1e7})
    for (int i : {0, 1, 7, 31, 63})
      for (int p = 0; p <= 1000000; p += p < 1000 ? 1 : 997) {
        const Turn turn = turn_by(p * turns_per_position(theta, i, 64));
        const double angle = p * std::pow(theta, -i / 64.0);
        worst =
            std::max({worst, std::abs(turn.cosine - std::cos(angle)), std::abs(turn.sine - std::sin(angle))});
      }
  EXPECT_LT(worst, 1.2e-7);
}

TEST(RopeKernel, DoesNotDependOnTheNumberOfThreads) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Tensors one(dtype, 300, 2, 2, 48, Norms::both, 1);
    one.forward();
    one.backward();
    for (int threads : {2, 3}) {
      Tensors other(dtype, 300, 2, 2, 48, Norms::both, threads);
      other.forward();
      other.backward();
      EXPECT_TRUE(one.qkv.same_bits(other.qkv) && one.dq_weight.same_bits(other.dq_weight) &&
                  one.dk_weight.same_bits(other.dk_weight) && one.saved.same_bits(other.saved));
    }
  }
}
