// Generation must say what training says: logits over a cache, one token at a time, against the losses of
// a whole sequence.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "models/make_model.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr int64_t batch = 2, tokens = 19, vocabulary = 40;

ModelSpec small() {
  ModelSpec spec;
  spec.layers = 2;
  spec.hidden_size = 32;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.ffn_size = 48;
  spec.vocab_size = vocabulary;
  spec.init_std = 0.3;  // far from uniform, so that a wrong cache shows
  return spec;
}

std::vector<int> text() {
  std::vector<int> ids;
  for (uint64_t i = 0; i < batch * tokens; ++i)
    ids.push_back(static_cast<int>(random_u64(5, 1, i) % vocabulary));
  return ids;
}

void check(const ModelSpec& spec) {
  TestBed bed;
  bed.tape.set_mode(Tape::Mode::evaluate);
  const auto model = make_model(spec, tokens);
  model->declare(bed.params);
  bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::off);
  bed.params.initialize(bed.queue, 9);

  const std::vector<int> ids = text();
  std::vector<int> targets = ids, positions;
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const int64_t t = i % tokens;
    targets[static_cast<size_t>(i)] = t + 1 < tokens ? ids[static_cast<size_t>(i + 1)] : -1;
    positions.push_back(static_cast<int>(t));
  }
  const BatchView view{.tokens = make_i32(bed.inputs, {batch, tokens}, ids),
                       .targets = make_i32(bed.inputs, {batch, tokens}, targets),
                       .positions = make_i32(bed.inputs, {batch, tokens}, positions),
                       .document_start = {}};
  const Tensor losses = bed.inputs.alloc({batch * tokens}, DType::f32);
  model->loss(bed.tape, view, {.grad_scale = {}, .sums = bed.zeros(2), .token_losses = losses});
  const Values expected = read(losses);
  bed.tape.reset();

  DecodeCache cache = model->make_cache(bed.inputs, batch, tokens);
  for (int64_t t = 0; t + 1 < tokens; ++t) {
    const Tensor now =
        make_i32(bed.inputs, {batch}, {ids[static_cast<size_t>(t)], ids[static_cast<size_t>(tokens + t)]});
    const Tensor at = make_i32(bed.inputs, {batch}, {static_cast<int>(t), static_cast<int>(t)});
    write(cache.lengths, Values(batch, static_cast<double>(t + 1)));
    const Values logits = read(model->decode(bed.tape, now, at, cache));
    bed.tape.reset();
    for (int64_t b = 0; b < batch; ++b) {
      const double* row = logits.data() + b * vocabulary;
      double total = 0;
      for (int64_t v = 0; v < vocabulary; ++v) total += std::exp(row[v]);
      const size_t i = static_cast<size_t>(b * tokens + t);
      EXPECT_NEAR(std::log(total) - row[targets[i]], expected[i], 2e-4)
          << "sequence " << b << ", token " << t;
    }
  }
}

}  // namespace

TEST(Decode, GivesTheLossesOfTheWholeSequence) { check(small()); }

TEST(Decode, DoesSoForEveryVariant) {
  for (NormKind norm : {NormKind::ssnorm, NormKind::layernorm}) {
    ModelSpec spec = small();
    spec.norm = norm;
    spec.embedding_projection = true;
    SCOPED_TRACE(static_cast<int>(norm));
    check(spec);
  }
  ModelSpec tied = small();
  tied.tie_embeddings = tied.qk_norm = true;
  check(tied);
  ModelSpec windowed = small();
  windowed.attention.window = 3;
  check(windowed);
  ModelSpec qwen2 = windowed;
  qwen2.attention.window_layers = {"1"};
  qwen2.qkv_bias = qwen2.output_bias = qwen2.mlp_bias = true;
  qwen2.rope_scaling = RopeScalingSpec{.kind = RopeScalingSpec::Kind::yarn, .factor = 2, .original_len = 4};
  check(qwen2);
  for (Activation activation : {Activation::gelu, Activation::relu}) {
    ModelSpec gpt = small();
    gpt.family = ModelSpec::Family::gpt;
    gpt.kv_heads.reset();
    gpt.head_size.reset();
    gpt.activation = activation;
    gpt.max_positions = tokens;
    check(gpt);
  }
  using Kind = AttentionSpec::Kind;
  for (Kind kind : {Kind::clipped_softmax, Kind::sink, Kind::gated}) {
    for (auto gate : {AttentionSpec::Gate::headwise, AttentionSpec::Gate::elementwise}) {
      ModelSpec spec = small();
      spec.attention.kind = kind;
      spec.attention.gate = gate;
      spec.attention.bias_init = 0.5;
      if (kind == Kind::clipped_softmax) spec.attention.alpha = 2;
      SCOPED_TRACE(static_cast<int>(kind));
      check(spec);
    }
  }
}
