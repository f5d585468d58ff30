// Sums over whole batches against the logits of one token at a time.

#include "framework/eval/likelihood.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "models/llama/llama.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr int64_t vocabulary = 40, longest = 24;

struct Likelihoods : testing::Test {
  Likelihoods() {
    ModelSpec spec;
    spec.layers = 2;
    spec.hidden_size = 32;
    spec.heads = 4;
    spec.kv_heads = 2;
    spec.ffn_size = 48;
    spec.vocab_size = vocabulary;
    spec.init_std = 0.3;  // far from uniform
    model = make_llama(spec, longest);
    model->declare(bed.params);
    bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::off);
    bed.params.initialize(bed.queue, 9);
    bed.tape.set_mode(Tape::Mode::evaluate);
  }

  /// log p of the last `scored` tokens, from the logits, by hand.
  double by_hand(std::span<const int32_t> tokens, int64_t scored) {
    const auto count = static_cast<int64_t>(tokens.size());
    DecodeCache cache = model->make_cache(bed.inputs, 1, count);
    double sum = 0;
    for (int64_t t = 0; t + 1 < count; ++t) {
      const Tensor now = make_i32(bed.inputs, {1}, {tokens[static_cast<size_t>(t)]});
      const Tensor at = make_i32(bed.inputs, {1}, {static_cast<int>(t)});
      write(cache.lengths, {static_cast<double>(t + 1)});
      const Values logits = read(model->decode(bed.tape, now, at, cache));
      bed.tape.reset();
      if (t + 1 < count - scored) continue;
      double total = 0;
      for (double v : logits) total += std::exp(v);
      sum += logits[static_cast<size_t>(tokens[static_cast<size_t>(t + 1)])] - std::log(total);
    }
    return sum;
  }

  std::vector<int32_t> draw(uint64_t stream, int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i)
      tokens.push_back(static_cast<int32_t>(random_u64(5, stream, static_cast<uint64_t>(i)) % vocabulary));
    return tokens;
  }

  TestBed bed{1};
  std::unique_ptr<LanguageModel> model;
};

}  // namespace

TEST_F(Likelihoods, AreTheSumsOfTheLogitsWhateverTheBatch) {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<ScoredText> texts;
  for (uint64_t i = 0; i < 7; ++i) tokens.push_back(draw(i, 2 + static_cast<int64_t>(i * 3 % 19)));
  for (size_t i = 0; i < tokens.size(); ++i)
    texts.push_back(
        {tokens[i], 1 + static_cast<int64_t>(i % 3) % (static_cast<int64_t>(tokens[i].size()) - 1)});
  std::vector<double> expected;
  for (const ScoredText& text : texts) expected.push_back(by_hand(text.tokens, text.scored));
  for (int64_t rows : {1, 3, 8}) {
    const auto found = log_likelihoods(*model, bed.tape, texts, {.rows = rows, .sequence_len = longest});
    for (size_t i = 0; i < texts.size(); ++i)
      EXPECT_NEAR(found[i], expected[i], 5e-4) << i << " of " << rows << " rows";
  }
}

TEST_F(Likelihoods, OfALongTextOnlyTheEndIsRead) {
  const auto tokens = draw(3, 20);
  const std::vector<ScoredText> text = {{tokens, 2}};
  const double found = log_likelihoods(*model, bed.tape, text, {.rows = 4, .sequence_len = 8})[0];
  EXPECT_NEAR(found, by_hand(std::span(tokens).last(9), 2), 5e-4);
  EXPECT_GT(std::abs(found - by_hand(tokens, 2)), 1e-3);
}

TEST_F(Likelihoods, WhatDoesNotFitIsRefused) {
  const auto tokens = draw(3, 20);
  const auto refused = [&](int64_t scored, const char* words) {
    const std::vector<ScoredText> text = {{tokens, scored}};
    const std::string said =
        error_of([&] { log_likelihoods(*model, bed.tape, text, {.rows = 1, .sequence_len = 8}); });
    EXPECT_TRUE(contains(said, words)) << said;
  };
  refused(9, "9 tokens to score do not fit into a sequence of 8");
  refused(20, "cannot be scored");
  refused(0, "cannot be scored");
}

TEST_F(Likelihoods, WindowsScoreEveryTokenButTheFirstOnceWithContextBeforeIt) {
  const auto tokens = draw(4, 23);
  for (const auto& [length, stride] : {std::pair<int64_t, int64_t>{8, 3}, {8, 8}, {24, 5}, {5, 1}}) {
    std::vector<ScoredText> texts;
    add_windows(tokens, length, stride, texts);
    size_t next = 1;
    for (const ScoredText& text : texts) {
      const auto begin = static_cast<size_t>(text.tokens.data() - tokens.data());
      EXPECT_EQ(begin + text.tokens.size() - static_cast<size_t>(text.scored), next);
      EXPECT_LE(static_cast<int64_t>(text.tokens.size()), length + 1);
      if (next > 1) {
        EXPECT_TRUE(static_cast<int64_t>(next - begin) >= length + 1 - stride || begin == 0);
      }
      next = begin + text.tokens.size();
    }
    EXPECT_EQ(next, tokens.size()) << length << ", " << stride;
  }
  std::vector<ScoredText> none;
  add_windows(std::span(tokens).first(1), 8, 3, none);
  EXPECT_TRUE(none.empty());
}
