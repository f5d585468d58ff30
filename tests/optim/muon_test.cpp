#include "optim/muon.h"

#include <gtest/gtest.h>

#include <optional>

#include "kernels/core/random.h"
#include "optim/adamw.h"
#include "tests/oracle/muon.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using kernels::Momentum;
using oracle::Dense;
using test::DeviceCopy;

// One matrix with its state and gradient, on the device under test.
struct Matrix {
  int64_t out, in;
  std::string name;
  DType dtype;
  DeviceCopy<float> master, grad, momentum;
  DeviceCopy<bf16> value;

  Matrix(int64_t rows, int64_t cols, std::string path, DType type = DType::bf16)
      : out(rows),
        in(cols),
        name(std::move(path)),
        dtype(type),
        master(normal(rows * cols, 0.02f, 1, name)),
        grad(normal(rows * cols, 1e-3f, 2, name)),
        momentum(std::vector<float>(static_cast<size_t>(rows * cols))),
        value(std::vector<bf16>(static_cast<size_t>(rows * cols))) {}
  static std::vector<float> normal(int64_t n, float scale, uint64_t seed, const std::string& name) {
    std::vector<float> x(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i) x[i] = scale * random_normal(seed, stream_of(name), i);
    return x;
  }
  void draw_gradient(uint64_t step) { grad.set(normal(out * in, 1e-3f, 2 + step, name)); }
  ParamPiece piece() const {
    ParamPiece p;
    p.name = name;
    p.full_shape = {out, in};
    p.end = out * in;
    p.master = master.tensor({out, in});
    p.value = dtype == DType::f32 ? p.master : value.tensor({out, in});
    p.grad = grad.tensor({out, in});
    p.state[0] = momentum.tensor({out, in});
    return p;
  }
  Dense dense(const std::vector<float>& x) const {
    Dense d(static_cast<size_t>(out), static_cast<size_t>(in));
    for (size_t i = 0; i < x.size(); ++i) d.v[i] = static_cast<double>(x[i]);
    return d;
  }
  Dense dense(const DeviceCopy<float>& x) const { return dense(x.values()); }
};

// One step with all the workspace that the optimizer asks for, or `bytes`.
void step(const Optimizer& optimizer, const std::vector<ParamPiece>& pieces,
          const test::Control& scalars = {}, int threads = 2, std::optional<int64_t> bytes = {}) {
  const Queue queue = test::test_queue(threads);
  if (!bytes) bytes = optimizer.workspace_bytes(queue, pieces);
  const DeviceCopy<float> memory(std::vector<float>(static_cast<size_t>(*bytes / 4), NAN));
  const DeviceCopy<double> on_device = test::control(scalars);
  optimizer.step(queue, pieces, {.control = on_device.flat(), .workspace = memory.flat()});
  EXPECT_TRUE(memory.guards_intact());
}

// (before - after) / learning_rate, with weight decay off this is scale * orthogonal.
Dense moved(const Matrix& m, const std::vector<float>& before, double learning_rate) {
  Dense d = m.dense(before);
  const std::vector<float> after = m.master.values();
  for (size_t i = 0; i < d.v.size(); ++i) d.v[i] = (d.v[i] - static_cast<double>(after[i])) / learning_rate;
  return d;
}

double rms(const Dense& d) { return oracle::norm(d) / std::sqrt(static_cast<double>(d.v.size())); }

double distance(const Dense& a, const Dense& b) {
  Dense d = a;
  for (size_t i = 0; i < d.v.size(); ++i) d.v[i] -= b.v[i];
  return oracle::norm(d) / oracle::norm(b);
}

TEST(Muon, ThreeStepsFollowTheDoubleTranscription) {
  for (NewtonSchulz method : {NewtonSchulz::polar_express, NewtonSchulz::keller})
    for (Momentum form : {Momentum::nesterov, Momentum::plain})
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{48, 96}, {96, 48}, {64, 64}}) {
        const double lr = 0.01, wd = 0.1, mu = 0.9, clip = 0.5;
        Matrix m(out, in, "w", DType::f32);
        const Muon muon({.learning_rate = 2 * lr,
                         .weight_decay = wd,
                         .momentum = mu,
                         .form = form,
                         .newton_schulz = method});
        Dense w = m.dense(m.master), buffer(w.rows, w.cols);
        for (int t = 0; t < 3; ++t) {
          m.draw_gradient(static_cast<uint64_t>(t));
          step(muon, {m.piece()}, {.step = t, .learning_rate_factor = 0.5, .grad_scale = clip});
          const std::vector<float> grad = m.grad.values();
          Dense u = buffer;
          for (size_t i = 0; i < w.v.size(); ++i) {
            const double g = clip * static_cast<double>(grad[i]);
            buffer.v[i] = mu * buffer.v[i] + g;
            u.v[i] = form == Momentum::nesterov ? g + mu * buffer.v[i] : buffer.v[i];
          }
          const Dense o = oracle::newton_schulz(u, method, 5);
          const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(out, in)));
          for (size_t i = 0; i < w.v.size(); ++i) w.v[i] -= lr * (scale * o.v[i] + wd * w.v[i]);
        }
        EXPECT_LT(distance(m.dense(m.master), w), 1e-4) << out << " x " << in;
        EXPECT_LT(distance(m.dense(m.momentum), buffer), 1e-6);
      }
}

TEST(Muon, Bf16StepsStayNearTheDoubleOnesAndValueIsTheRoundedMaster) {
  Matrix m(200, 96, "w");
  const std::vector<float> before = m.master.values();
  step(Muon({.learning_rate = 0.01, .weight_decay = 0}), {m.piece()});
  Dense wanted = oracle::newton_schulz(m.dense(m.grad), NewtonSchulz::polar_express, 5);
  for (double& e : wanted.v) e *= 0.2 * std::sqrt(200.0);
  EXPECT_LT(distance(moved(m, before, 0.01), wanted), 0.03);
  const std::vector<float> master = m.master.values();
  const std::vector<bf16> value = m.value.values();
  for (size_t i = 0; i < master.size(); ++i) ASSERT_EQ(value[i].bits, to_bf16(master[i]).bits);
}

TEST(Muon, MatchRmsAdamwMovesEntriesByAFifth) {
  // Full-rank gradients: entries of the step have RMS 0.2, whatever the shape and orientation.
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{64, 64}, {192, 64}, {64, 192}}) {
    Matrix m(out, in, "w");
    const std::vector<float> before = m.master.values();
    step(Muon({.learning_rate = 0.01, .weight_decay = 0}), {m.piece()});
    EXPECT_NEAR(rms(moved(m, before, 0.01)), 0.2, 0.03) << out << " x " << in;
  }
}

TEST(Muon, ScaleRulesReadShapesAsOutIn) {
  // The trap: read as (in, out), tall and wide matrices swap their factors.
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::match_rms_adamw, 400, 100), 4);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::match_rms_adamw, 100, 400), 4);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::keller, 400, 100), 2);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::keller, 100, 400), 1);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::spectral, 400, 100), 2);
  EXPECT_DOUBLE_EQ(muon_scale(MuonScale::spectral, 100, 400), 0.5);
  // And the step carries them: its largest singular value is the factor times about one.
  for (MuonScale rule : {MuonScale::match_rms_adamw, MuonScale::keller, MuonScale::spectral})
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{96, 24}, {24, 96}}) {
      Matrix m(out, in, "w");
      const std::vector<float> before = m.master.values();
      step(Muon({.learning_rate = 1, .weight_decay = 0, .scale = rule}), {m.piece()});
      const double largest = oracle::singular_values(moved(m, before, 1.0)).front();
      EXPECT_NEAR(largest / muon_scale(rule, out, in), 1.0, 0.17) << out << " x " << in;
    }
}

TEST(Muon, TransposedProblemsHaveTransposedAnswers) {
  const int64_t out = 96, in = 40;
  const Matrix tall(out, in, "w");
  Matrix wide(in, out, "w");
  const auto transposed = [&](const std::vector<float>& x) {
    std::vector<float> t(x.size());
    for (int64_t r = 0; r < out; ++r)
      for (int64_t c = 0; c < in; ++c)
        t[static_cast<size_t>(c * out + r)] = x[static_cast<size_t>(r * in + c)];
    return t;
  };
  wide.master.set(transposed(tall.master.values()));
  wide.grad.set(transposed(tall.grad.values()));
  const Muon muon({.learning_rate = 0.01});
  step(muon, {tall.piece()});
  step(muon, {wide.piece()});
  const Dense expected = oracle::transpose(tall.dense(tall.master));
  EXPECT_LT(distance(wide.dense(wide.master), expected), 1e-3);
}

TEST(Muon, SumAndAverageMomentumHaveOneDirection) {
  // EMA momentum on G is sum momentum on (1 - mu) G: the step must not notice the factor, not even for
  // gradients so small that an epsilon in the norm would show.
  for (double size : {1.0, 1e-9}) {
    Matrix sum(40, 64, "w"), average(40, 64, "w");
    const Muon muon({.learning_rate = 0.01, .momentum = 0.95});
    for (int t = 0; t < 3; ++t) {
      sum.draw_gradient(static_cast<uint64_t>(t));
      average.draw_gradient(static_cast<uint64_t>(t));
      step(muon, {sum.piece()}, {.step = t});
      step(muon, {average.piece()}, {.step = t, .grad_scale = 0.0625 * size});
    }
    EXPECT_LT(distance(average.dense(average.master), sum.dense(sum.master)), 2e-4) << size;
  }
}

TEST(Muon, DecayUsesThePlainLearningRate) {
  Matrix with(64, 256, "w"), without(64, 256, "w");
  const std::vector<float> before = with.master.values();
  step(Muon({.learning_rate = 0.01, .weight_decay = 0.5}), {with.piece()});
  step(Muon({.learning_rate = 0.01, .weight_decay = 0}), {without.piece()});
  const std::vector<float> a = with.master.values(), b = without.master.values();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(b[i] - a[i], 0.01 * 0.5 * before[i], 1e-7);
}

TEST(Muon, ZeroGradientMovesNothingButTheDecay) {
  Matrix m(30, 50, "w");
  m.grad.set(std::vector<float>(30 * 50));
  const std::vector<float> before = m.master.values();
  step(Muon({.learning_rate = 0.01, .weight_decay = 0}), {m.piece()});
  EXPECT_EQ(m.master.values(), before);
  step(Muon({.learning_rate = 0.01, .weight_decay = 0.5}), {m.piece()});
  const std::vector<float> after = m.master.values();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(after[i], 0.995f * before[i], 1e-8);
}

TEST(Muon, RankOneGradientsGiveFiniteRankOneSteps) {
  Matrix m(64, 48, "w", DType::f32);
  std::vector<float> grad(64 * 48);
  for (int64_t r = 0; r < 64; ++r)
    for (int64_t c = 0; c < 48; ++c)
      grad[static_cast<size_t>(r * 48 + c)] =
          random_normal(1, 90, static_cast<uint64_t>(r)) * random_normal(1, 91, static_cast<uint64_t>(c));
  m.grad.set(grad);
  const std::vector<float> before = m.master.values();
  step(Muon({.learning_rate = 0.1, .weight_decay = 0, .scale = MuonScale::keller}), {m.piece()});
  const std::vector<double> sigma = oracle::singular_values(moved(m, before, 0.1));
  EXPECT_NEAR(sigma[0] / muon_scale(MuonScale::keller, 64, 48), 1, 0.16);
  EXPECT_LT(sigma[1], 0.01);
}

TEST(Muon, NeitherThreadsNorNeighboursNorOwnersChangeABit) {
  // Any cut of the list over ranks, any number of threads, any batches on a GPU.
  const auto make = [] {
    std::vector<Matrix> list;
    for (int i = 0; i < 3; ++i) list.emplace_back(160, 160, "a" + std::to_string(i));
    for (int i = 0; i < 4; ++i) list.emplace_back(40, 200, "b" + std::to_string(i));
    list.emplace_back(200, 40, "c");
    return list;
  };
  const Muon muon({.learning_rate = 0.01});
  const auto run = [&](int threads, std::vector<size_t> cuts) {
    std::vector<Matrix> list = make();
    for (int t = 0; t < 2; ++t)
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        std::vector<ParamPiece> pieces;
        for (size_t i = cuts[c]; i < cuts[c + 1]; ++i) pieces.push_back(list[i].piece());
        step(muon, pieces, {.step = t}, threads);
      }
    std::vector<std::vector<float>> masters;
    for (Matrix& m : list) masters.push_back(m.master.values());
    return masters;
  };
  const auto expected = run(1, {0, 8});
  EXPECT_EQ(run(2, {0, 8}), expected);
  EXPECT_EQ(run(3, {0, 8}), expected);
  EXPECT_EQ(run(2, {0, 1, 5, 8}), expected);
  EXPECT_EQ(run(4, {0, 2, 3, 8}), expected);
}

TEST(Muon, OneMatrixWorthOfWorkspaceIsEnough) {
  std::vector<Matrix> a, b;
  for (int i = 0; i < 4; ++i)
    a.emplace_back(40, 72, std::to_string(i)), b.emplace_back(40, 72, std::to_string(i));
  const Muon muon({});
  const auto pieces_of = [](const std::vector<Matrix>& list) {
    std::vector<ParamPiece> pieces;
    for (const Matrix& m : list) pieces.push_back(m.piece());
    return pieces;
  };
  step(muon, pieces_of(a));
  const std::vector<ParamPiece> pieces = pieces_of(b);
  const int64_t one = muon.workspace_bytes({}, std::span(pieces).first(1));
  step(muon, pieces, {}, 2, one);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(a[i].master.values(), b[i].master.values());
  EXPECT_THROW(step(muon, pieces, {}, 2, one - 64), Error);
}

TEST(Muon, AStepThatIsNotAppliedChangesNothing) {
  Matrix m(40, 72, "w");
  m.grad.set(std::vector<float>(40 * 72, NAN));
  const std::vector<float> before = m.master.values();
  step(Muon({}), {m.piece()}, {.apply = 0});
  EXPECT_EQ(m.master.values(), before);
  EXPECT_EQ(m.momentum.values(), std::vector<float>(40 * 72));
}

// Pieces that have shapes and no memory.
std::vector<ParamPiece> planned(std::initializer_list<Shape> shapes, DType dtype = DType::bf16) {
  std::vector<ParamPiece> pieces;
  for (const Shape& shape : shapes) {
    ParamPiece p;
    p.full_shape = shape;
    p.value = make_tensor(nullptr, shape, dtype, {DeviceKind::meta});
    pieces.push_back(p);
  }
  return pieces;
}

TEST(Muon, AGpuTakesEqualShapesTogetherAndAtMostAGiBOfThem) {
  const Queue plan{.device = {DeviceKind::meta}, .planned = DeviceKind::cuda};
  const Muon muon({});
  const auto bytes = [&](std::initializer_list<Shape> shapes) {
    return muon.workspace_bytes(plan, planned(shapes));
  };
  const int64_t square = bytes({{512, 512}}), wide = bytes({{512, 1408}});
  EXPECT_GE(square, 4 * 512 * 512 * 2);
  EXPECT_NEAR(static_cast<double>(bytes({{512, 512}, {512, 512}, {512, 512}})),
              3.0 * static_cast<double>(square), 200);
  // Transposed ones are alike; others begin a batch of their own, and the largest batch counts.
  EXPECT_NEAR(static_cast<double>(bytes({{512, 1408}, {1408, 512}})), 2.0 * static_cast<double>(wide), 200);
  EXPECT_EQ(bytes({{512, 512}, {512, 1408}, {512, 512}}), wide);
  // 4096 x 16384: 0.3 GiB each; and one that exceeds the limit comes alone.
  const int64_t large = bytes({{4096, 16384}}), huge = bytes({{16384, 65536}}), gib = int64_t{1} << 30;
  EXPECT_LE(bytes({{4096, 16384}, {4096, 16384}, {4096, 16384}, {4096, 16384}}), gib);
  EXPECT_GE(bytes({{4096, 16384}, {4096, 16384}, {4096, 16384}, {4096, 16384}}), 3 * large - 256);
  EXPECT_GT(huge, gib);
  EXPECT_EQ(bytes({{16384, 65536}, {16384, 65536}}), huge);
  // A CPU needs one slot a thread.
  const Queue cpu{.device = {DeviceKind::meta}, .threads = 2};
  EXPECT_EQ(muon.workspace_bytes(cpu, planned({{512, 512}, {512, 512}, {512, 512}})), 2 * square);
}

TEST(Muon, WhatIsNotAMatrixIsRefusedWithTheCure) {
  Matrix m(1, 64, "norm.weight");
  ParamPiece p = m.piece();
  p.full_shape = {64};
  try {
    step(Muon({}), {p});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "[muon] norm.weight has shape (64), and Muon orthogonalises matrices; give it to adamw "
                 "in an earlier optim group");
  }
  EXPECT_THROW(Muon({.steps = 6}), Error);
}

TEST(AdamWOptimizer, IsTheKernelOnEveryPiece) {
  const Matrix whole(40, 50, "w"), cut(40, 50, "w");
  const DeviceCopy<float> second_whole(std::vector<float>(2000)), second_cut(std::vector<float>(2000));
  const AdamW adamw({});
  const auto range = [](const Matrix& m, const DeviceCopy<float>& second, int64_t begin, int64_t end) {
    ParamPiece p;
    p.name = m.name;
    p.full_shape = {40, 50};
    p.begin = begin, p.end = end;
    p.master = m.master.range(begin, end);
    p.value = m.value.range(begin, end);
    p.grad = m.grad.range(begin, end);
    p.state[0] = m.momentum.range(begin, end);
    p.state[1] = second.range(begin, end);
    return p;
  };
  const std::vector<float> before = whole.master.values();
  for (int t = 0; t < 3; ++t) {
    step(adamw, {range(whole, second_whole, 0, 2000)}, {.step = t});
    std::vector<ParamPiece> pieces;
    for (int64_t begin = 0; begin < 2000; begin += 23)
      pieces.push_back(range(cut, second_cut, begin, std::min<int64_t>(2000, begin + 23)));
    step(adamw, pieces, {.step = t});
  }
  EXPECT_EQ(whole.master.values(), cut.master.values());
  EXPECT_NE(whole.master.values(), before);
  EXPECT_EQ(adamw.granularity(), ShardGranularity::element);
}

}  // namespace
}  // namespace osprey
