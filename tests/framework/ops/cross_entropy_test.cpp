#include "framework/ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/oracle/classifier.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

struct Problem {
  int64_t rows, width, vocabulary;
  DType dtype;
  Values x, weight;
  std::vector<int> targets;
};

Problem problem(int64_t rows, int64_t width, int64_t vocabulary, DType dtype, double scale = 0.6) {
  Problem p{rows,
            width,
            vocabulary,
            dtype,
            random_values("x", rows * width, dtype),
            random_values("w", vocabulary * width, dtype, scale),
            {}};
  for (int64_t i = 0; i < rows; ++i)
    p.targets.push_back(i % 7 == 3 ? -1 : static_cast<int>((i * 31 + 5) % vocabulary));
  return p;
}

struct Outcome {
  Values dx, dweight, token_losses;
  struct {
    double loss = 0, tokens = 0;
  } sum;
  double loss = 0;
};

enum class Frozen { nothing, weight, everything };

Outcome run(const Problem& p, float scale, int threads, int passes = 1, Frozen frozen = Frozen::nothing) {
  TestBed bed(threads);
  Parameter& w = bed.params.add("head.weight", -1, {p.vocabulary, p.width}, {});
  w.trainable = frozen == Frozen::nothing;
  bed.params.materialize(bed.queue.device, p.dtype, ParamStore::Gradients::on);
  bed.params.begin_step();
  write(w.value, p.weight);
  const Tensor x = make(bed.inputs, {p.rows, p.width}, p.dtype, p.x),
               targets = make_i32(bed.inputs, {p.rows}, p.targets);
  const Tensor losses = bed.inputs.alloc({p.rows}, DType::f32);
  Outcome o;
  for (int pass = 0; pass < passes; ++pass) {
    const Tensor sums = bed.zeros(2), grad_scale = make(bed.inputs, {1}, DType::f64, {scale});
    const Var in = frozen == Frozen::everything ? bed.tape.input(x) : bed.tape.source(x);
    const Var loss = cross_entropy(bed.tape, in, w, targets,
                                   {.grad_scale = grad_scale, .sums = sums, .token_losses = losses});
    o.loss = read(bed.tape.value(loss))[0];
    o.sum = {read(sums)[0], read(sums)[1]};
    EXPECT_EQ(bed.tape.needs_grad(loss), frozen != Frozen::everything);
    if (frozen != Frozen::everything) {
      bed.tape.backward(loss);
      o.dx = read(bed.tape.gradient_of(in));
    }
    bed.tape.reset();
  }
  EXPECT_EQ(w.grad_written, frozen == Frozen::nothing);
  if (w.grad_written) o.dweight = read(w.grad);
  o.token_losses = read(losses);
  bed.arena.check_guards();
  bed.inputs.check_guards();
  return o;
}

}  // namespace

TEST(CrossEntropy, AgreesWithTheOracleAndTwiceIsTwice) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [rows, width, vocabulary] :
         {std::array<int64_t, 3>{1, 8, 5}, {77, 40, 65}, {70, 33, 1031}, {600, 16, 70}}) {
      SCOPED_TRACE(fmt::format("{} rows {} width {} vocabulary {}", name(dtype), rows, width, vocabulary));
      const Problem p = problem(rows, width, vocabulary, dtype);
      const oracle::Classifier want = oracle::classifier(p.x, p.weight, p.targets, width, 0.25);
      const Outcome once = run(p, 0.25f, 2), twice = run(p, 0.25f, 2, 2);
      const double tolerance = dtype == DType::bf16 ? 1.5e-2 : 2e-5;
      EXPECT_NEAR(once.sum.loss, want.loss, 1e-5 * want.loss);
      EXPECT_NEAR(once.loss, 0.25 * want.loss, 1e-5 * want.loss);
      EXPECT_EQ(once.sum.tokens, want.tokens);
      EXPECT_LT(relative_error(once.token_losses, want.token_losses), 1e-5);
      EXPECT_LT(relative_error(once.dx, want.dx), tolerance);
      EXPECT_LT(relative_error(once.dweight, want.dweight), tolerance);
      Values doubled = want.dweight;
      for (double& v : doubled) v *= 2;
      EXPECT_LT(relative_error(twice.dweight, doubled), tolerance);
      EXPECT_LT(relative_error(twice.dx, want.dx), tolerance);
    }
}

TEST(CrossEntropy, OracleGradientIsTheDerivativeOfItsLoss) {
  Problem p = problem(5, 6, 9, DType::f32);
  const oracle::Classifier at = oracle::classifier(p.x, p.weight, p.targets, 6, 0.5);
  const double h = 1e-5;
  for (Values* v : {&p.x, &p.weight})
    for (size_t i = 0; i < v->size(); i += 3) {
      const double old = (*v)[i];
      (*v)[i] = old + h;
      const double up = oracle::classifier(p.x, p.weight, p.targets, 6, 0.5).loss;
      (*v)[i] = old - h;
      const double down = oracle::classifier(p.x, p.weight, p.targets, 6, 0.5).loss;
      (*v)[i] = old;
      EXPECT_NEAR((v == &p.x ? at.dx : at.dweight)[i], 0.5 * (up - down) / (2 * h), 1e-7);
    }
}

TEST(CrossEntropy, ThreadsAndRepetitionDoNotChangeABit) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Problem p = problem(600, 32, 300, dtype);
    const Outcome one = run(p, 1.0f, 1), two = run(p, 1.0f, 2), again = run(p, 1.0f, 2);
    EXPECT_EQ(one.dx, two.dx);
    EXPECT_EQ(one.dweight, two.dweight);
    EXPECT_EQ(one.sum.loss, two.sum.loss);
    EXPECT_EQ(two.dx, again.dx);
    EXPECT_EQ(two.dweight, again.dweight);
  }
}

TEST(CrossEntropy, FrozenInputsGetNoWrite) {
  const Problem p = problem(20, 8, 30, DType::bf16);
  const oracle::Classifier want = oracle::classifier(p.x, p.weight, p.targets, 8, 1);
  EXPECT_LT(relative_error(run(p, 1, 2, 1, Frozen::weight).dx, want.dx), 1.5e-2);
  EXPECT_NEAR(run(p, 1, 2, 1, Frozen::everything).sum.loss, want.loss, 1e-4 * want.loss);
}

TEST(CrossEntropy, LargeLogitsStayFinite) {
  Problem p = problem(12, 16, 40, DType::f32, 300.0);
  const oracle::Classifier want = oracle::classifier(p.x, p.weight, p.targets, 16, 1);
  const Outcome got = run(p, 1, 2);
  EXPECT_NEAR(got.sum.loss, want.loss, 1e-5 * want.loss);
  EXPECT_LT(relative_error(got.dx, want.dx), 1e-4);
}

TEST(CrossEntropy, RefusesATargetOutsideTheVocabulary) {
  for (int bad : {-2, 5}) {
    Problem p = problem(4, 8, 5, DType::f32);
    p.targets[2] = bad;
    if (test_device().kind ==
        DeviceKind::cuda) {  // a GPU does not look; its loss says that something is wrong
      EXPECT_TRUE(std::isnan(run(p, 1, 1).sum.loss));
      continue;
    }
    try {
      run(p, 1, 1);
      FAIL() << "target " << bad << " was taken";
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()),
                fmt::format("[cross_entropy] target {} of row 2 is outside [-1, 5)", bad));
    }
  }
}

TEST(CrossEntropy, PlansItsScratchOnMeta) {
  const Problem p = problem(130, 16, 70, DType::bf16);
  const Queue meta{.device = {DeviceKind::meta}, .threads = 1, .planned = test_device().kind};
  int64_t high[2];
  for (const bool plan : {true, false}) {
    const Queue queue = plan ? meta : test_queue(1);
    ParamStore params;
    Parameter& w = params.add("head.weight", -1, {70, 16}, {});
    params.materialize(queue.device, DType::bf16, ParamStore::Gradients::on);
    params.begin_step();
    Arena arena("activations", queue.device, 1 << 24), inputs("inputs", queue.device, 1 << 20);
    Pool pool("gradients", queue.device);
    Tape tape(queue, arena, pool);
    tape.set_mode(Tape::Mode::train);
    const Tensor x = inputs.alloc({130, 16}, DType::bf16), targets = inputs.alloc({130}, DType::i32);
    if (!plan) {
      write(w.value, p.weight);
      write(x, p.x);
      write(targets, Values(p.targets.begin(), p.targets.end()));
    }
    const Tensor sums = inputs.alloc({2}, DType::f64);
    if (!plan) write(sums, {0, 0});
    tape.backward(cross_entropy(tape, tape.source(x), w, targets, {.grad_scale = {}, .sums = sums}));
    high[plan] = arena.high_water_bytes();
  }
  EXPECT_EQ(high[0], high[1]);
}
