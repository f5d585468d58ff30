#include "optim/muon.h"

#include <gtest/gtest.h>

#include <memory>

#include "kernels/core/random.h"
#include "optim/adamw.h"
#include "tests/oracle/muon.h"

namespace osprey {
namespace {

using kernels::Momentum;
using oracle::Dense;

// One matrix with its state, gradient and memory.
struct Matrix {
  int64_t out, in;
  std::string name;
  DType dtype;
  std::vector<float> master, grad, momentum;
  std::vector<bf16> value;

  Matrix(int64_t rows, int64_t cols, std::string path, DType type = DType::bf16)
      : out(rows), in(cols), name(std::move(path)), dtype(type) {
    const auto n = static_cast<size_t>(rows * cols);
    master.resize(n), grad.resize(n), momentum.resize(n), value.resize(n);
    for (size_t i = 0; i < n; ++i) master[i] = 0.02f * random_normal(1, stream_of(name), i);
    draw_gradient(0);
  }
  void draw_gradient(uint64_t step) {
    for (size_t i = 0; i < grad.size(); ++i) grad[i] = 1e-3f * random_normal(2 + step, stream_of(name), i);
  }
  ParamPiece piece() {
    const auto f32 = [&](std::vector<float>& x) { return make_tensor(x.data(), {out, in}, DType::f32); };
    ParamPiece p;
    p.name = name;
    p.full_shape = {out, in};
    p.end = out * in;
    p.master = f32(master);
    p.value = dtype == DType::f32 ? p.master : make_tensor(value.data(), {out, in}, DType::bf16);
    p.grad = f32(grad);
    p.state[0] = f32(momentum);
    return p;
  }
  Dense dense(const std::vector<float>& x) const {
    Dense d(static_cast<size_t>(out), static_cast<size_t>(in));
    for (size_t i = 0; i < x.size(); ++i) d.v[i] = x[i];
    return d;
  }
};

void step(const Optimizer& optimizer, std::vector<ParamPiece> pieces, StepInfo info, int threads = 2) {
  Queue queue;
  queue.threads = threads;
  const int64_t bytes = optimizer.workspace_bytes(queue, pieces);
  std::vector<float> memory(static_cast<size_t>(bytes / 4 + 16), NAN);
  void* aligned = memory.data();
  size_t space = memory.size() * 4;
  std::align(64, static_cast<size_t>(bytes), aligned, space);
  info.workspace = make_tensor(aligned, {bytes / 4}, DType::f32);
  optimizer.step(queue, pieces, info);
}

// (before - after) / learning_rate, with weight decay off this is scale * orthogonal.
Dense moved(const Matrix& m, const std::vector<float>& before, double learning_rate) {
  Dense d = m.dense(before);
  for (size_t i = 0; i < d.v.size(); ++i) d.v[i] = (d.v[i] - m.master[i]) / learning_rate;
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
        const Muon muon({.weight_decay = wd, .momentum = mu, .form = form, .newton_schulz = method});
        Dense w = m.dense(m.master), buffer(w.rows, w.cols);
        for (int t = 0; t < 3; ++t) {
          m.draw_gradient(static_cast<uint64_t>(t));
          step(muon, {m.piece()}, {.step = t, .learning_rate = lr, .grad_scale = clip});
          Dense u = buffer;
          for (size_t i = 0; i < w.v.size(); ++i) {
            const double g = clip * m.grad[i];
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
  const std::vector<float> before = m.master;
  step(Muon({.weight_decay = 0}), {m.piece()}, {.learning_rate = 0.01});
  Dense wanted = oracle::newton_schulz(m.dense(m.grad), NewtonSchulz::polar_express, 5);
  for (double& e : wanted.v) e *= 0.2 * std::sqrt(200.0);
  EXPECT_LT(distance(moved(m, before, 0.01), wanted), 0.03);
  for (size_t i = 0; i < m.master.size(); ++i) ASSERT_EQ(m.value[i].bits, to_bf16(m.master[i]).bits);
}

TEST(Muon, MatchRmsAdamwMovesEntriesByAFifth) {
  // Full-rank gradients: entries of the step have RMS 0.2, whatever the shape and orientation.
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{64, 64}, {192, 64}, {64, 192}}) {
    Matrix m(out, in, "w");
    const std::vector<float> before = m.master;
    step(Muon({.weight_decay = 0}), {m.piece()}, {.learning_rate = 0.01});
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
      const std::vector<float> before = m.master;
      step(Muon({.weight_decay = 0, .scale = rule}), {m.piece()}, {.learning_rate = 1.0});
      const double largest = oracle::singular_values(moved(m, before, 1.0)).front();
      EXPECT_NEAR(largest / muon_scale(rule, out, in), 1.0, 0.17) << out << " x " << in;
    }
}

TEST(Muon, TransposedProblemsHaveTransposedAnswers) {
  const int64_t out = 96, in = 40;
  Matrix tall(out, in, "w"), wide(in, out, "w");
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      const auto i = static_cast<size_t>(r * in + c), j = static_cast<size_t>(c * out + r);
      wide.master[j] = tall.master[i];
      wide.grad[j] = tall.grad[i];
    }
  step(Muon({}), {tall.piece()}, {.learning_rate = 0.01});
  step(Muon({}), {wide.piece()}, {.learning_rate = 0.01});
  const Dense expected = oracle::transpose(tall.dense(tall.master));
  EXPECT_LT(distance(wide.dense(wide.master), expected), 1e-3);
}

TEST(Muon, SumAndAverageMomentumHaveOneDirection) {
  // EMA momentum on G is sum momentum on (1 - mu) G: the step must not notice the factor, not even for
  // gradients so small that an epsilon in the norm would show.
  for (double size : {1.0, 1e-9}) {
    Matrix sum(40, 64, "w"), average(40, 64, "w");
    const Muon muon({.momentum = 0.95});
    for (int t = 0; t < 3; ++t) {
      sum.draw_gradient(static_cast<uint64_t>(t));
      average.draw_gradient(static_cast<uint64_t>(t));
      step(muon, {sum.piece()}, {.step = t, .learning_rate = 0.01});
      step(muon, {average.piece()}, {.step = t, .learning_rate = 0.01, .grad_scale = 0.0625 * size});
    }
    EXPECT_LT(distance(average.dense(average.master), sum.dense(sum.master)), 2e-4) << size;
  }
}

TEST(Muon, DecayUsesThePlainLearningRate) {
  Matrix with(64, 256, "w"), without(64, 256, "w");
  const std::vector<float> before = with.master;
  step(Muon({.weight_decay = 0.5}), {with.piece()}, {.learning_rate = 0.01});
  step(Muon({.weight_decay = 0}), {without.piece()}, {.learning_rate = 0.01});
  for (size_t i = 0; i < before.size(); ++i)
    EXPECT_NEAR(without.master[i] - with.master[i], 0.01 * 0.5 * before[i], 1e-7);
}

TEST(Muon, ZeroGradientMovesNothingButTheDecay) {
  Matrix m(30, 50, "w");
  std::fill(m.grad.begin(), m.grad.end(), 0.0f);
  const std::vector<float> before = m.master;
  step(Muon({.weight_decay = 0}), {m.piece()}, {.learning_rate = 0.01});
  EXPECT_EQ(m.master, before);
  step(Muon({.weight_decay = 0.5}), {m.piece()}, {.learning_rate = 0.01});
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(m.master[i], 0.995f * before[i], 1e-8);
}

TEST(Muon, RankOneGradientsGiveFiniteRankOneSteps) {
  Matrix m(64, 48, "w", DType::f32);
  for (int64_t r = 0; r < 64; ++r)
    for (int64_t c = 0; c < 48; ++c)
      m.grad[static_cast<size_t>(r * 48 + c)] =
          random_normal(1, 90, static_cast<uint64_t>(r)) * random_normal(1, 91, static_cast<uint64_t>(c));
  const std::vector<float> before = m.master;
  step(Muon({.weight_decay = 0, .scale = MuonScale::keller}), {m.piece()}, {.learning_rate = 0.1});
  const std::vector<double> sigma = oracle::singular_values(moved(m, before, 0.1));
  EXPECT_NEAR(sigma[0] / muon_scale(MuonScale::keller, 64, 48), 1, 0.16);
  EXPECT_LT(sigma[1], 0.01);
}

TEST(Muon, NeitherThreadsNorNeighboursNorOwnersChangeABit) {
  // Any cut of the list over ranks, any number of threads.
  const auto make = [] {
    std::vector<Matrix> list;
    for (int i = 0; i < 3; ++i) list.emplace_back(160, 160, "a" + std::to_string(i));
    for (int i = 0; i < 4; ++i) list.emplace_back(40, 200, "b" + std::to_string(i));
    list.emplace_back(200, 40, "c");
    return list;
  };
  const Muon muon({});
  const auto run = [&](int threads, std::vector<size_t> cuts) {
    std::vector<Matrix> list = make();
    for (int t = 0; t < 2; ++t)
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        std::vector<ParamPiece> pieces;
        for (size_t i = cuts[c]; i < cuts[c + 1]; ++i) pieces.push_back(list[i].piece());
        step(muon, pieces, {.step = t, .learning_rate = 0.01}, threads);
      }
    std::vector<std::vector<float>> masters;
    for (Matrix& m : list) masters.push_back(m.master);
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
  std::vector<ParamPiece> pieces;
  for (Matrix& m : a) pieces.push_back(m.piece());
  step(muon, pieces, {.learning_rate = 0.01});
  const int64_t one = muon.workspace_bytes({}, std::span(pieces).first(1));
  std::vector<float> memory(static_cast<size_t>(one / 4) + 16);
  void* aligned = memory.data();
  size_t space = memory.size() * 4;
  std::align(64, static_cast<size_t>(one), aligned, space);
  pieces.clear();
  for (Matrix& m : b) pieces.push_back(m.piece());
  Queue queue;
  queue.threads = 2;
  StepInfo info{.learning_rate = 0.01};
  info.workspace = make_tensor(aligned, {one / 4}, DType::f32);
  muon.step(queue, pieces, info);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(a[i].master, b[i].master);
  info.workspace.shape = {one / 4 - 16};
  EXPECT_THROW(muon.step(queue, pieces, info), Error);
}

TEST(Muon, WhatIsNotAMatrixIsRefusedWithTheCure) {
  Matrix m(1, 64, "norm.weight");
  ParamPiece p = m.piece();
  p.full_shape = {64};
  try {
    step(Muon({}), {p}, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "[muon] norm.weight has shape (64), and Muon orthogonalises matrices; give it to adamw "
                 "in an earlier optim group");
  }
  EXPECT_THROW(Muon({.steps = 6}), Error);
}

TEST(AdamWOptimizer, IsTheKernelOnEveryPiece) {
  Matrix whole(40, 50, "w"), cut(40, 50, "w");
  std::vector<float> second_whole(2000), second_cut(2000);
  const AdamW adamw({});
  const auto range = [](Matrix& m, std::vector<float>& second, int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    ParamPiece p;
    p.name = m.name;
    p.full_shape = {40, 50};
    p.begin = begin, p.end = end;
    p.master = make_tensor(m.master.data() + begin, {n}, DType::f32);
    p.value = make_tensor(m.value.data() + begin, {n}, DType::bf16);
    p.grad = make_tensor(m.grad.data() + begin, {n}, DType::f32);
    p.state[0] = make_tensor(m.momentum.data() + begin, {n}, DType::f32);
    p.state[1] = make_tensor(second.data() + begin, {n}, DType::f32);
    return p;
  };
  const std::vector<float> before = whole.master;
  for (int t = 0; t < 3; ++t) {
    step(adamw, {range(whole, second_whole, 0, 2000)}, {.step = t, .learning_rate = 0.01});
    step(adamw, {range(cut, second_cut, 0, 777), range(cut, second_cut, 777, 2000)},
         {.step = t, .learning_rate = 0.01});
  }
  EXPECT_EQ(whole.master, cut.master);
  EXPECT_NE(whole.master, before);
  EXPECT_EQ(adamw.granularity(), Granularity::element);
}

}  // namespace
}  // namespace osprey
