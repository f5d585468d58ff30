#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "tests/oracle/matmul.h"
#include "tests/support/on_device.h"

namespace osprey {
namespace {

using kernels::Matmul;
using kernels::Op;
using test::Buffer;
using test::OnDevice;

const Queue queue{.device = {}, .threads = 2};

Shape stored(Op op, int64_t rows, int64_t cols) {
  return op == Op::none ? Shape{rows, cols} : Shape{cols, rows};
}

struct Case {
  int64_t m, n, k;
  DType in, out;
  Op op_a = Op::none, op_b = Op::none;
  float alpha = 1.0f, beta = 0.0f;
  int64_t padding = 0;
};

std::string label(const Case& c) {
  return fmt::format("{}x{}x{} {}->{} {}{} alpha {} beta {} padding {}", c.m, c.n, c.k, name(c.in),
                     name(c.out), c.op_a == Op::none ? 'n' : 't', c.op_b == Op::none ? 'n' : 't', c.alpha,
                     c.beta, c.padding);
}

using Front = void (*)(const Queue&, const Matmul&);

void expect_matches_oracle(const Case& c) {
  SCOPED_TRACE(label(c));
  Buffer a(stored(c.op_a, c.m, c.k), c.in, c.padding), b(stored(c.op_b, c.k, c.n), c.in, c.padding);
  Buffer before({c.m, c.n}, c.out);
  a.fill(1);
  b.fill(2);
  before.fill(3);
  const oracle::Product expected = oracle::matmul(a, c.op_a == Op::transpose, b, c.op_b == Op::transpose);
  for (Front front : {kernels::matmul, kernels::library_matmul}) {
    SCOPED_TRACE(front == Front{kernels::matmul} ? "matmul" : "library_matmul");
    Buffer result({c.m, c.n}, c.out, c.padding), one_thread({c.m, c.n}, c.out, c.padding);
    for (Buffer* r : {&result, &one_thread}) {
      for (int64_t i = 0; i < c.m * c.n; ++i)
        r->set(i / c.n, i % c.n, c.beta == 0 ? std::numeric_limits<double>::quiet_NaN() : before.get(i));
      OnDevice on(r == &result ? 2 : 1);
      front(on.queue, {.c = on(*r),
                       .a = on(a),
                       .b = on(b),
                       .op_a = c.op_a,
                       .op_b = c.op_b,
                       .alpha = c.alpha,
                       .beta = c.beta});
      on.fetch();
    }
    for (int64_t i = 0; i < c.m * c.n; ++i) {
      const auto u = static_cast<size_t>(i);
      const double old = c.beta == 0 ? 0 : c.beta * before.get(i);
      const double want = c.alpha * expected.value[u] + old;
      const double rounding = c.out == DType::bf16 ? std::fabs(want) / 200 : 0;
      ASSERT_NEAR(result.get(i), want,
                  1e-6 * std::sqrt(c.k) * (std::fabs(c.alpha) * expected.magnitude[u] + std::fabs(old)) +
                      rounding + 1e-6)
          << "element " << i;
    }
    EXPECT_TRUE(result.guards_intact());
    EXPECT_TRUE(result.same_bits(one_thread)) << "the result depends on the number of threads";
  }
}

TEST(Matmul, AgreesWithTheDoubleOracleForOddShapesStridesAndTranspositions) {
  for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                         {1, 65, 33},
                         {3, 7, 129},
                         {65, 1, 64},
                         {65, 130, 31},
                         {64, 64, 64},
                         {1, 512, 2048}})
    for (DType in : {DType::f32, DType::bf16})
      for (DType out : {DType::f32, DType::bf16})
        for (Op op_a : {Op::none, Op::transpose})
          for (Op op_b : {Op::none, Op::transpose})
            for (int64_t padding : {0, 5})
              expect_matches_oracle({m, n, k, in, out, op_a, op_b, 1.0f, 0.0f, padding});
}

TEST(Matmul, ScalesAndAccumulates) {
  for (DType in : {DType::f32, DType::bf16})
    for (DType out : {DType::f32, DType::bf16}) {
      expect_matches_oracle({33, 70, 65, in, out, Op::none, Op::none, 0.5f, 1.0f, 3});
      expect_matches_oracle({33, 70, 65, in, out, Op::none, Op::transpose, -2.0f, 0.25f, 0});
      expect_matches_oracle({33, 70, 65, in, out, Op::transpose, Op::none, 3.0f, 0.0f, 0});
    }
}

TEST(Matmul, AddsWhatStandsElsewhereAsWhatStandsInPlace) {
  for (const auto& [in, out] : {std::pair{DType::f32, DType::f32},
                                {DType::bf16, DType::bf16},
                                {DType::bf16, DType::f32},
                                {DType::f32, DType::bf16}})
    for (const Shape& batch : {Shape{70, 48}, Shape{3, 70, 48}})
      for (Front front : {kernels::matmul, kernels::library_matmul}) {
        SCOPED_TRACE(fmt::format("{} {} -> {}", batch, name(in), name(out)));
        const bool many = batch.rank == 3;
        Buffer a(batch, in), b(many ? Shape{3, 48, 33} : Shape{48, 33}, in);
        const Shape shape = many ? Shape{3, 70, 33} : Shape{70, 33};
        Buffer addend(shape, out, 5), in_place(shape, out, 2), elsewhere(shape, out, 2);
        a.fill(1);
        b.fill(2);
        addend.fill(3);
        in_place.fill(3);
        OnDevice on;
        Matmul args{.c = on(in_place), .a = on(a), .b = on(b), .alpha = 0.5f, .beta = -1.5f};
        front(on.queue, args);
        args.c = on(elsewhere);
        args.addend = on(addend);
        front(on.queue, args);
        on.fetch();
        EXPECT_TRUE(elsewhere.same_bits(in_place));
        EXPECT_TRUE(elsewhere.guards_intact() && addend.guards_intact());
      }
}

TEST(Matmul, LargeProductsDoNotDependOnTheNumberOfThreads) {
  expect_matches_oracle({128, 96, 4096, DType::bf16, DType::f32, Op::transpose, Op::none, 1.0f, 1.0f, 0});
  expect_matches_oracle({1, 40000, 65, DType::bf16, DType::f32, Op::none, Op::none, 1.0f, 0.0f, 0});
  for (DType in : {DType::f32, DType::bf16})
    for (auto [m, n, k] : {std::array<int64_t, 3>{256, 256, 1024},
                           {512, 64, 2048},
                           {64, 512, 2048},
                           {256, 128, 2048},
                           {130, 300, 4096}})
      for (Op op : {Op::none, Op::transpose})
        expect_matches_oracle({m, n, k, in, DType::f32, op, Op::none, 1.0f, 0.0f, 0});
  expect_matches_oracle({64, 64, 8192, DType::f32, DType::f32, Op::none, Op::none, 1.0f, 0.0f, 0});
  expect_matches_oracle({2, 300, 4096, DType::bf16, DType::bf16, Op::none, Op::transpose, 1.0f, 0.0f, 0});
}

TEST(Matmul, MultipliesBatches) {
  for (auto [in, out] :
       {std::pair{DType::f32, DType::f32}, {DType::bf16, DType::f32}, {DType::f32, DType::bf16}}) {
    Buffer a({3, 17, 9}, in), b({3, 21, 9}, in), c({3, 17, 21}, out);
    a.fill(1);
    b.fill(2);
    OnDevice on;
    kernels::matmul(on.queue, {.c = on(c), .a = on(a), .b = on(b), .op_b = Op::transpose});
    on.fetch();
    for (int64_t s = 0; s < 3; ++s)
      for (int64_t i = 0; i < 17; ++i)
        for (int64_t j = 0; j < 21; ++j) {
          double want = 0;
          for (int64_t x = 0; x < 9; ++x) want += a.get(s * 17 + i, x) * b.get(s * 21 + j, x);
          ASSERT_NEAR(c.get(s * 17 + i, j), want, 1e-4 + (out == DType::bf16 ? std::fabs(want) / 200 : 0));
        }
  }
}

TEST(Matmul, ManyRowsRoundInPieces) {  // more floats than a stream has scratch memory for
  for (Op op : {Op::none, Op::transpose}) {
    const int64_t m = 2050, n = 4100;
    Buffer a(stored(op, m, 1), DType::f32), b({1, n}, DType::f32), c({m, n}, DType::bf16);
    for (int64_t i = 0; i < m; ++i) a.set(op == Op::none ? i : 0, op == Op::none ? 0 : i, i % 13 + 1);
    for (int64_t j = 0; j < n; ++j) b.set(0, j, j % 11 + 1);
    OnDevice on;
    kernels::matmul(on.queue, {.c = on(c), .a = on(a), .b = on(b), .op_a = op});
    on.fetch();
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) ASSERT_EQ(c.get(i, j), (i % 13 + 1) * (j % 11 + 1)) << i << ", " << j;
  }
}

TEST(Matmul, RunsInSeveralThreadsAtOnce) {
  Buffer a({40, 50}, DType::bf16), b({50, 60}, DType::bf16);
  a.fill(1);
  b.fill(2);
  Buffer want({40, 60}, DType::f32);
  kernels::matmul({.device = {}, .threads = 1}, {.c = want, .a = a, .b = b});
  std::vector<Buffer> results;
  for (int i = 0; i < 4; ++i) results.emplace_back(Shape{40, 60}, DType::f32);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round)
        kernels::matmul({.device = {}, .threads = 1}, {.c = results[static_cast<size_t>(i)], .a = a, .b = b});
    });
  for (auto& t : threads) t.join();
  for (const Buffer& r : results) EXPECT_TRUE(r.same_bits(want));
}

TEST(Matmul, RefusesWhatDoesNotFit) {
  Buffer a({4, 5}, DType::f32), b({6, 7}, DType::f32), c({4, 7}, DType::f32), half({5, 7}, DType::bf16);
  EXPECT_THROW(kernels::matmul(queue, {.c = c, .a = a, .b = b}), Error);
  EXPECT_THROW(kernels::matmul(queue, {.c = c, .a = a, .b = half}), Error);
  const Queue meta{.device = {DeviceKind::meta}, .threads = 1};
  EXPECT_THROW(kernels::matmul(meta, {.c = c, .a = a, .b = a}), Error);
  Tensor ma = make_tensor(nullptr, {4, 5}, DType::f32, meta.device),
         mc = make_tensor(nullptr, {4, 4}, DType::f32, meta.device);
  EXPECT_NO_THROW(kernels::matmul(meta, {.c = mc, .a = ma, .b = ma, .op_b = Op::transpose}));
  EXPECT_THROW(kernels::matmul(meta, {.c = mc, .a = ma, .b = ma}), Error);
}

}  // namespace
}  // namespace osprey
