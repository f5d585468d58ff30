#include "framework/telemetry/first_token.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

/// Attention inputs with the lse of plain causal attention, in double.
struct Case {
  int64_t B = 2, T = 7, H = 4, G = 2, D = 8;
  float scale = 0.35f;
  std::vector<float> q, k, lse;
  double share = 0;

  Case()
      : q(static_cast<size_t>(B * T * H * D)),
        k(static_cast<size_t>(B * T * G * D)),
        lse(static_cast<size_t>(B * H * T)) {
    for (size_t i = 0; i < q.size(); ++i) q[i] = random_normal(1, 1, i);
    for (size_t i = 0; i < k.size(); ++i) k[i] = random_normal(1, 2, i);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < T; ++i) {
          double total = 0;
          for (int64_t j = 0; j <= i; ++j) total += std::exp(score(b, h, i, j));
          lse[static_cast<size_t>((b * H + h) * T + i)] = static_cast<float>(std::log(total));
          if (i > 0) share += std::exp(score(b, h, i, 0)) / total / static_cast<double>(B * H * (T - 1));
        }
  }
  double score(int64_t b, int64_t h, int64_t i, int64_t j) const {
    double dot = 0;
    for (int64_t d = 0; d < D; ++d)
      dot += double(q[static_cast<size_t>(((b * T + i) * H + h) * D + d)]) *
             double(k[static_cast<size_t>(((b * T + j) * G + h / (H / G)) * D + d)]);
    return dot * double(scale);
  }
  FirstTokenArgs args() {
    return {.q = make_tensor(q.data(), {B * T, H * D}, DType::f32),
            .k = make_tensor(k.data(), {B * T, G * D}, DType::f32),
            .lse = make_tensor(lse.data(), {B, H, T}, DType::f32),
            .document_start = {},
            .batch = B,
            .tokens = T,
            .heads = H,
            .kv_heads = G,
            .head_size = D,
            .scale = scale};
  }
};

TEST(FirstToken, IsTheMeanProbabilityOfKeyZeroOverHeadsAndLaterQueries) {
  Case c;
  const FirstTokenSums s = first_token_share(Queue{}, c.args());
  EXPECT_EQ(s.queries, c.B * c.H * (c.T - 1));
  EXPECT_NEAR(*s.share(), c.share, 1e-6);
}

TEST(FirstToken, EqualKeysGiveTheHarmonicMean) {
  Case c;
  for (float& v : c.k) v = 0;
  for (int64_t i = 0; i < c.B * c.H * c.T; ++i)
    c.lse[static_cast<size_t>(i)] = std::log(static_cast<float>(i % c.T + 1));
  double want = 0;
  for (int64_t i = 1; i < c.T; ++i) want += 1.0 / double(i + 1) / double(c.T - 1);
  EXPECT_NEAR(*first_token_share(Queue{}, c.args()).share(), want, 1e-6);
}

TEST(FirstToken, ThreadsDoNotChangeABitAndMergingAddsBatches) {
  Case c;
  Queue three;
  three.threads = 3;
  FirstTokenSums one = first_token_share(Queue{}, c.args());
  EXPECT_EQ(one.probability, first_token_share(three, c.args()).probability);
  FirstTokenSums twice = one;
  twice.merge(one);
  EXPECT_EQ(twice.queries, 2 * one.queries);
  EXPECT_NEAR(*twice.share(), *one.share(), 1e-12);
}

TEST(FirstToken, ReadsColumnViewsOfAJointProjection) {
  Case c;
  const int64_t width = (c.H + c.G) * c.D;
  std::vector<float> qk(static_cast<size_t>(c.B * c.T * width));
  for (int64_t r = 0; r < c.B * c.T; ++r) {
    for (int64_t i = 0; i < c.H * c.D; ++i)
      qk[static_cast<size_t>(r * width + i)] = c.q[static_cast<size_t>(r * c.H * c.D + i)];
    for (int64_t i = 0; i < c.G * c.D; ++i)
      qk[static_cast<size_t>(r * width + c.H * c.D + i)] = c.k[static_cast<size_t>(r * c.G * c.D + i)];
  }
  const Tensor joint = make_tensor(qk.data(), {c.B * c.T, width}, DType::f32);
  FirstTokenArgs args = c.args();
  args.q = joint.columns(0, c.H * c.D);
  args.k = joint.columns(c.H * c.D, width);
  EXPECT_EQ(first_token_share(Queue{}, args).probability, first_token_share(Queue{}, c.args()).probability);
}

TEST(FirstToken, CountsQueriesThatAreNotFinite) {
  Case c;
  c.lse[3] = std::numeric_limits<float>::quiet_NaN();
  c.lse[4] = -std::numeric_limits<float>::infinity();
  const FirstTokenSums s = first_token_share(Queue{}, c.args());
  EXPECT_EQ(s.nonfinite_queries, 2);
  EXPECT_TRUE(std::isfinite(*s.share()));
}

TEST(FirstToken, DocumentsHaveFirstTokensOfTheirOwn) {
  Case c;
  // Every sequence holds documents of 3 and 4 tokens; equal keys make every probability 1 / tokens seen.
  for (float& v : c.k) v = 0;
  std::vector<int32_t> starts{0, 0, 0, 3, 3, 3, 3, 0, 0, 0, 3, 3, 3, 3};
  for (int64_t i = 0; i < c.B * c.H * c.T; ++i) {
    const int64_t at = i % c.T;
    c.lse[static_cast<size_t>(i)] = std::log(static_cast<float>(at < 3 ? at + 1 : at - 2));
  }
  FirstTokenArgs args = c.args();
  args.document_start = make_tensor(starts.data(), {c.B, c.T}, DType::i32);
  const FirstTokenSums s = first_token_share(Queue{}, args);
  EXPECT_EQ(s.queries, c.B * c.H * 5);
  EXPECT_NEAR(*s.share(), (1 / 2.0 + 1 / 3.0 + 1 / 2.0 + 1 / 3.0 + 1 / 4.0) / 5, 1e-6);
  // Real keys: document by document must equal each document alone.
  Case d;
  const int64_t N = d.B * d.T;
  args = d.args();
  args.document_start = make_tensor(starts.data(), {d.B, d.T}, DType::i32);
  double want = 0;
  for (int64_t b = 0; b < d.B; ++b)
    for (int64_t h = 0; h < d.H; ++h)
      for (int64_t i = 0; i < d.T; ++i) {
        const int64_t first = i < 3 ? 0 : 3;
        if (i == first) continue;
        const double p =
            std::exp(d.score(b, h, i, first) - double(d.lse[static_cast<size_t>((b * d.H + h) * d.T + i)]));
        want += p;
      }
  EXPECT_NEAR(first_token_share(Queue{}, args).probability, want, 1e-5 * static_cast<double>(N));
}

TEST(FirstToken, QueriesWhoseWindowDoesNotReachBackAreLeftOut) {
  Case c;
  FirstTokenArgs args = c.args();
  args.window = 3;  // queries 1 and 2 see token 0
  const FirstTokenSums s = first_token_share(Queue{}, args);
  EXPECT_EQ(s.queries, c.B * c.H * 2);
  double want = 0;
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t h = 0; h < c.H; ++h)
      for (int64_t i = 1; i < 3; ++i)
        want += std::exp(c.score(b, h, i, 0) - double(c.lse[static_cast<size_t>((b * c.H + h) * c.T + i)]));
  EXPECT_NEAR(s.probability, want, 1e-5 * static_cast<double>(c.B * c.T));
}

TEST(FirstToken, SequencesOfLengthOneHaveNoShare) {
  Case c;
  FirstTokenArgs args = c.args();
  args.batch = c.B * c.T;
  args.tokens = 1;
  EXPECT_FALSE(first_token_share(Queue{}, args).share());
}

TEST(FirstToken, NamesTheShapeThatIsWrong) {
  Case c;
  FirstTokenArgs args = c.args();
  args.kv_heads = 4;
  try {
    first_token_share(Queue{}, args);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("k must be (14, 32)"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace osprey
