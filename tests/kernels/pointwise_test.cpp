#include "kernels/pointwise.h"

#include <gtest/gtest.h>

#include "tests/support/slice.h"

using namespace osprey;
using namespace osprey::test;

namespace {

struct Size {
  int64_t rows, cols;
  Layout layout;
};
/// Aligned, strided, odd, and beginning off an alignment.
const std::vector<Size> sizes = {
    {1, 1, {}}, {33, 64, {}}, {7, 48, {16, 8}}, {29, 17, {0, 3}}, {12, 32, {1, 7}}};
const std::vector<DType> floats = {DType::f32, DType::bf16};

std::string text(const Size& s, DType dtype) {
  return fmt::format("{} {}x{} + {} + {}", name(dtype), s.rows, s.cols, s.layout.before, s.layout.after);
}

double rounded(DType dtype, double v) {
  const float f = static_cast<float>(v);
  return dtype == DType::bf16 ? to_float(to_bf16(f)) : f;
}

}  // namespace

TEST(CopyKernel, ConvertsAndKeepsBits) {
  for (const Size& s : sizes)
    for (DType from : {DType::f32, DType::bf16, DType::i32})
      for (DType to : {DType::f32, DType::bf16, DType::i32}) {
        if ((from == DType::i32) != (to == DType::i32)) continue;
        SCOPED_TRACE(text(s, from) + " to " + name(to));
        Slice x(s.rows, s.cols, from, s.layout), y(s.rows, s.cols, to, {s.layout.after, s.layout.before});
        x.fill(1, 1000);
        OnDevice on;
        kernels::copy(on.queue, {.y = y.on(on), .x = x.on(on)});
        on.fetch();
        for (int64_t r = 0; r < s.rows; ++r)
          for (int64_t c = 0; c < s.cols; ++c)
            ASSERT_EQ(y.get(r, c), from == to ? x.get(r, c) : rounded(to, x.get(r, c)));
        EXPECT_TRUE(y.surroundings_intact());
      }
}

TEST(FillKernel, SetsEveryElementAndNothingElse) {
  for (const Size& s : sizes)
    for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
      SCOPED_TRACE(text(s, dtype));
      Slice y(s.rows, s.cols, dtype, s.layout);
      OnDevice on;
      kernels::fill(on.queue, {.y = y.on(on), .value = 0.1});
      on.fetch();
      for (double v : y.values()) ASSERT_EQ(v, dtype == DType::f64 ? 0.1 : rounded(dtype, 0.1));
      EXPECT_TRUE(y.surroundings_intact());
    }
}

TEST(AddKernel, RoundsOnceAndWorksInPlace) {
  for (const Size& s : sizes)
    for (DType dtype : floats) {
      SCOPED_TRACE(text(s, dtype));
      Slice a(s.rows, s.cols, dtype, s.layout), b(s.rows, s.cols, dtype, {3, 5}),
          bias(1, s.cols, dtype, {1, 0});
      a.fill(1), b.fill(2), bias.fill(3);
      const auto before = a.values(), other = b.values(), row = bias.values();
      OnDevice on;
      kernels::add(on.queue, {.y = a.on(on), .a = a.on(on), .b = b.on(on)});
      on.fetch();
      const auto sum = a.values();
      kernels::add_bias(on.queue, {.y = a.on(on), .x = a.on(on), .bias = bias.vector_on(on)});
      on.fetch();
      const auto after = a.values();
      for (size_t i = 0; i < sum.size(); ++i) {
        ASSERT_EQ(sum[i], rounded(dtype, before[i] + other[i]));
        ASSERT_EQ(after[i], rounded(dtype, sum[i] + row[i % static_cast<size_t>(s.cols)]));
      }
      EXPECT_TRUE(a.surroundings_intact());
    }
}

TEST(BiasBackwardKernel, SumsRowsIntoWhatIsThereOrOverIt) {
  for (const Size& s :
       {Size{1, 1, {}}, Size{700, 24, {}}, Size{130, 70, {1, 2}}, Size{5, 1030, {}}, Size{64, 512, {8, 8}}})
    for (DType dtype : floats)
      for (bool add : {false, true}) {
        SCOPED_TRACE(text(s, dtype));
        Slice dy(s.rows, s.cols, dtype, s.layout), dbias(1, s.cols, DType::f32);
        dy.fill(1);
        if (add) dbias.fill(2);
        std::vector<double> want = add ? dbias.values() : std::vector<double>(static_cast<size_t>(s.cols));
        for (int64_t r = 0; r < s.rows; ++r)
          for (int64_t c = 0; c < s.cols; ++c) want[static_cast<size_t>(c)] += dy.get(r, c);
        OnDevice on;
        kernels::bias_backward(on.queue, {.dbias = {dbias.vector_on(on), add}, .dy = dy.on(on)});
        on.fetch();
        EXPECT_LT(worst_error(dbias.values(), want), 1e-5);
        EXPECT_TRUE(dbias.surroundings_intact());
      }
}

TEST(SwigluKernel, AgreesWithDoublesOnViews) {
  for (const Size& s : sizes)
    for (DType dtype : floats) {
      SCOPED_TRACE(text(s, dtype));
      Slice gate_up(s.rows, 2 * s.cols, dtype, s.layout), h(s.rows, s.cols, dtype, {2, 6}),
          dh(s.rows, s.cols, dtype, s.layout), dgate_up(s.rows, 2 * s.cols, dtype, s.layout);
      gate_up.fill(1, 3), dh.fill(2);
      OnDevice on;
      kernels::swiglu_forward(on.queue, {.h = h.on(on), .gate_up = gate_up.on(on)});
      kernels::swiglu_backward(
          on.queue, {.dgate_up = {dgate_up.on(on), false}, .dh = dh.on(on), .gate_up = gate_up.on(on)});
      on.fetch();
      std::vector<double> want_h, want(static_cast<size_t>(2 * s.rows * s.cols));
      for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t c = 0; c < s.cols; ++c) {
          const double g = gate_up.get(r, c), u = gate_up.get(r, s.cols + c),
                       sigmoid = 1 / (1 + std::exp(-g));
          want_h.push_back(g * sigmoid * u);
          const auto at = static_cast<size_t>(r * 2 * s.cols + c), up = at + static_cast<size_t>(s.cols);
          want[at] = dh.get(r, c) * u * sigmoid * (1 + g * (1 - sigmoid));
          want[up] = dh.get(r, c) * g * sigmoid;
        }
      const double tolerance = dtype == DType::bf16 ? 4e-3 : 2e-6;
      EXPECT_LT(worst_error(h.values(), want_h), tolerance);
      EXPECT_LT(worst_error(dgate_up.values(), want), tolerance);
      EXPECT_TRUE(h.surroundings_intact() && dgate_up.surroundings_intact());
    }
}

TEST(SwigluKernel, OfLargeGatesIsTheirProductOrZero) {
  Slice gate_up(1, 8, DType::f32), h(1, 4, DType::f32);
  const double gates[] = {200, -200, 90, -90};
  for (int64_t c = 0; c < 4; ++c) gate_up.set(0, c, gates[c]), gate_up.set(0, 4 + c, 2);
  OnDevice on;
  kernels::swiglu_forward(on.queue, {.h = h.on(on), .gate_up = gate_up.on(on)});
  on.fetch();
  EXPECT_EQ(h.get(0, 0), 400);
  EXPECT_NEAR(h.get(0, 1), 0, 1e-30);
  EXPECT_EQ(h.get(0, 2), 180);
  EXPECT_NEAR(h.get(0, 3), 0, 1e-30);
}

namespace {

/// Tokens of a large vocabulary, some of them often, as data have them.
Slice tokens_of(int64_t count, int64_t vocabulary, int64_t unaligned) {
  Slice tokens(1, count, DType::i32, {unaligned, 0});
  for (int64_t n = 0; n < count; ++n) {
    const double u = random_uniform(3, 1, static_cast<uint64_t>(n));
    tokens.set(0, n, n % 3 == 0 ? 5 : std::floor(static_cast<double>(vocabulary) * u * u));
  }
  return tokens;
}

struct EmbeddingSize {
  int64_t vocabulary, cols, count;
  Layout layout;
};
const std::vector<EmbeddingSize> embeddings = {{7, 12, 6, {}},
                                               {20001, 24, 1500, {}},
                                               {300, 9, 5000, {1, 0}},
                                               {4100, 320, 70, {}},
                                               {64, 8, 9001, {8, 8}}};

}  // namespace

TEST(EmbeddingKernel, GathersRows) {
  for (const EmbeddingSize& e : embeddings)
    for (DType dtype : floats) {
      SCOPED_TRACE(fmt::format("{} {} {} {}", name(dtype), e.vocabulary, e.cols, e.count));
      Slice tokens = tokens_of(e.count, e.vocabulary, e.layout.before),
            weight(e.vocabulary, e.cols, dtype, e.layout), y(e.count, e.cols, dtype, e.layout);
      weight.fill(1);
      OnDevice on;
      kernels::embedding_forward(on.queue,
                                 {.y = y.on(on), .tokens = tokens.vector_on(on), .weight = weight.on(on)});
      on.fetch();
      for (int64_t n = 0; n < e.count; ++n)
        for (int64_t c = 0; c < e.cols; ++c)
          ASSERT_EQ(y.get(n, c), weight.get(static_cast<int64_t>(tokens.get(0, n)), c));
      EXPECT_TRUE(y.surroundings_intact());
    }
}

TEST(EmbeddingKernel, BackwardAddsInTheOrderOfTokensBitForBit) {
  for (const EmbeddingSize& e : embeddings)
    for (DType dtype : floats)
      for (bool add : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} {} {}", name(dtype), e.vocabulary, e.cols, e.count));
        Slice tokens = tokens_of(e.count, e.vocabulary, e.layout.before),
              dy(e.count, e.cols, dtype, e.layout), dweight(e.vocabulary, e.cols, DType::f32);
        dy.fill(1);
        if (add) dweight.fill(2);
        const auto before = dweight.values();
        std::vector<float> want(before.size(), 0.0f);
        if (add) std::copy(before.begin(), before.end(), want.begin());
        for (int64_t n = 0; n < e.count; ++n)
          for (int64_t c = 0; c < e.cols; ++c)
            want[static_cast<size_t>(static_cast<int64_t>(tokens.get(0, n)) * e.cols + c)] +=
                static_cast<float>(dy.get(n, c));
        OnDevice on;
        kernels::embedding_backward(
            on.queue, {.dweight = {dweight.on(on), add}, .dy = dy.on(on), .tokens = tokens.vector_on(on)});
        on.fetch();
        EXPECT_EQ(dweight.values(), std::vector<double>(want.begin(), want.end()));
        EXPECT_TRUE(dweight.surroundings_intact());
      }
}

TEST(EmbeddingKernel, RowsOfTheGradientAreThoseOfTheWholeOneBitForBit) {
  for (const EmbeddingSize& e : embeddings)
    for (DType dtype : floats) {
      SCOPED_TRACE(fmt::format("{} {} {} {}", name(dtype), e.vocabulary, e.cols, e.count));
      Slice tokens = tokens_of(e.count, e.vocabulary, e.layout.before), dy(e.count, e.cols, dtype, e.layout),
            whole(e.vocabulary, e.cols, DType::f32);
      dy.fill(1);
      OnDevice on;
      const Tensor ids = tokens.vector_on(on), d = dy.on(on);
      kernels::embedding_backward(on.queue, {.dweight = {whole.on(on), false}, .dy = d, .tokens = ids});
      const int64_t at_a_time = e.vocabulary / 3 + 1;
      std::vector<Slice> parts;
      for (int64_t first = 0; first < e.vocabulary; first += at_a_time)
        parts.emplace_back(std::min(at_a_time, e.vocabulary - first), e.cols, DType::f32);
      for (size_t i = 0; i < parts.size(); ++i)
        kernels::embedding_backward(on.queue, {.dweight = {parts[i].on(on), false},
                                               .dy = d,
                                               .tokens = ids,
                                               .first_row = static_cast<int64_t>(i) * at_a_time});
      on.fetch();
      std::vector<double> joined;
      for (const Slice& part : parts)
        for (const double v : part.values()) joined.push_back(v);
      EXPECT_EQ(joined, whole.values());
    }
}

TEST(EmbeddingKernel, ATokenOutsideTheVocabularyIsRefusedOrMakesItsRowNan) {
  Slice tokens(1, 3, DType::i32), weight(7, 16, DType::bf16), y(3, 16, DType::bf16),
      dweight(7, 16, DType::f32), dy(3, 16, DType::bf16);
  tokens.set(0, 0, -1), tokens.set(0, 1, 6), tokens.set(0, 2, 7);
  weight.fill(1), dy.fill(2);
  OnDevice on;
  const auto forward = [&] {
    kernels::embedding_forward(on.queue,
                               {.y = y.on(on), .tokens = tokens.vector_on(on), .weight = weight.on(on)});
  };
  if (on.queue.device.kind == DeviceKind::cpu) {
    EXPECT_THROW(forward(), Error);
  } else {
    forward();
    on.fetch();
    EXPECT_TRUE(std::isnan(y.get(0, 0)) && std::isnan(y.get(2, 15)));
    EXPECT_EQ(y.get(1, 3), weight.get(6, 3));
  }
  kernels::embedding_backward(
      on.queue, {.dweight = {dweight.on(on), false}, .dy = dy.on(on), .tokens = tokens.vector_on(on)});
  on.fetch();
  EXPECT_EQ(dweight.get(0, 0), 0);
  EXPECT_EQ(dweight.get(6, 3), dy.get(1, 3));
}
