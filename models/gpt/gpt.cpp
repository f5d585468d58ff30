#include "models/gpt/gpt.h"

#include <fmt/format.h>

#include <cmath>
#include <deque>

#include "framework/ops/attention.h"
#include "framework/ops/cross_entropy.h"
#include "framework/ops/linear.h"
#include "framework/ops/pointwise.h"
#include "kernels/core/check.h"

namespace osprey {

namespace {

/// x W^T + b.
struct Affine {
  Parameter *weight = nullptr, *bias = nullptr;  // (out, in), (out)

  static Affine declare(ParamStore& params, const std::string& name, int layer, int64_t out, int64_t in,
                        double init_std) {
    return {&params.add(name + ".weight", layer, {out, in}, {Init::Kind::normal, init_std}),
            &params.add(name + ".bias", layer, {out}, {Init::Kind::constant, 0.0})};
  }
  Var operator()(Tape& t, Var x) const {  // (N, in) -> (N, out)
    Parameter* const biases[] = {bias};
    return add_biases(t, linear(t, x, *weight), biases);
  }
};

struct Attention {
  int64_t heads = 0, head_size = 0;
  int layer = 0;
  Affine q, k, v, o;

  Var projected(Tape& t, Var x) const {  // (N, C) -> (N, 3 C)
    Parameter *const weights[] = {q.weight, k.weight, v.weight}, *const biases[] = {q.bias, k.bias, v.bias};
    return add_biases(t, linear(t, x, weights), biases);
  }
  AttentionArgs args(int64_t batch, const Tensor& document_start) const {
    return {.batch = batch,
            .heads = heads,
            .kv_heads = heads,
            .head_size = head_size,
            .document_start = document_start};
  }
  Var operator()(Tape& t, Var x, const BatchView& batch) const {  // (N, C) -> (N, C)
    const Var y = attention(t, projected(t, x), args(batch.batch(), batch.document_start), {}, {});
    t.observe("attention_output", t.value(y));
    return o(t, y);
  }
  Var decode(Tape& t, Var x, DecodeCache& cache) const {  // (B, C) -> (B, C)
    const size_t l = static_cast<size_t>(layer);
    return o(t, cached_attention(t, projected(t, x), args(t.value(x).rows(), {}), {}, {}, cache.keys[l],
                                 cache.values[l], cache.lengths));
  }
};

struct Mlp {
  Activation activation = Activation::gelu;
  Affine up, down;

  Var operator()(Tape& t, Var x) const {  // (N, C) -> (N, C)
    const Var h = activate(t, up(t, x), activation);
    t.observe("down_input", t.value(h));
    return down(t, h);
  }
};

struct Block {
  Norm norm1, norm2;
  Attention attention;
  Mlp mlp;
  const BatchView* batch = nullptr;  // of the running step

  struct AttentionHalf {
    const Block* block;
    Var operator()(Tape& t, Var x) const {  // (N, C) -> (N, C)
      return block->attention(t, block->norm1(t, x), *block->batch);
    }
  };
  AttentionHalf attention_half{this};

  Block() = default;
  Block(const Block&) = delete;  // attention_half points into it
  Block& operator=(const Block&) = delete;

  Var operator()(Tape& t, Var x) const {  // (N, C) -> (N, C)
    t.observe("block_input", t.value(x));
    const NormedSum h = norm2.of_sum(t, x, t.recomputable(x, attention_half));
    return add(t, h.sum, mlp(t, h.normed));
  }
  Var decode(Tape& t, Var x, DecodeCache& cache) const {
    const NormedSum h = norm2.of_sum(t, x, attention.decode(t, norm1(t, x), cache));
    return add(t, h.sum, mlp(t, h.normed));
  }
};

class Gpt final : public LanguageModel {
 public:
  explicit Gpt(const ModelSpec& spec) : spec_(spec) {}

  void declare(ParamStore& params) override;
  Var hidden(Tape& t, const BatchView& batch) override;
  Var loss(Tape& t, const BatchView& batch, const LossArgs& args) override {
    return cross_entropy(t, hidden(t, batch), *head_, batch.targets.view({batch.targets.numel()}), args);
  }
  Tensor decode(Tape& t, const Tensor& tokens, const Tensor& positions, DecodeCache& cache) override;
  DecodeCache make_cache(Arena& arena, int64_t batch, int64_t capacity) override;
  double flops_per_token(int64_t sequence) const override;
  int64_t vocabulary() const override { return spec_.vocab_size; }

 private:
  void declare_block(ParamStore& params, int layer);
  /// What the table of positions has no row for, no text may reach.
  void require_positions(int64_t count) const {
    require(count <= spec_.max_positions, "gpt", "{} tokens are more than the {} positions of the model",
            count, spec_.max_positions);
  }
  Var embedded(Tape& t, const Tensor& tokens, const Tensor& positions) const {
    return add(t, embedding(t, tokens, t.leaf(*embed_)), embedding(t, positions, t.leaf(*positions_)));
  }
  Var to_head(Tape& t, Var x) const {
    const Var h = norm_(t, x);
    t.observe("final_hidden", t.value(h));
    return h;
  }

  ModelSpec spec_;
  Parameter *embed_ = nullptr, *positions_ = nullptr, *head_ = nullptr;
  std::deque<Block> blocks_;
  Norm norm_;
  BatchView batch_;
};

void Gpt::declare(ParamStore& params) {
  const Init normal{Init::Kind::normal, spec_.init_std};
  const int64_t width = spec_.hidden_size;
  embed_ = &params.add("embed.weight", -1, {spec_.vocab_size, width}, normal);
  positions_ = &params.add("positions.weight", -1, {spec_.max_positions, width}, normal);
  blocks_.resize(static_cast<size_t>(spec_.layers));
  for (int l = 0; l < static_cast<int>(spec_.layers); ++l) declare_block(params, l);
  norm_ = Norm::declare(params, "norm", -1, NormKind::layernorm, width, spec_.norm_eps);
  head_ = spec_.tie_embeddings ? embed_ : &params.add("head.weight", -1, {spec_.vocab_size, width}, normal);
  embed_->by_rows = head_->by_rows = head_ != embed_;
  positions_->by_rows = true;
}

void Gpt::declare_block(ParamStore& params, int layer) {
  const int64_t width = spec_.hidden_size;
  const double residual_std = spec_.init_std / std::sqrt(2.0 * static_cast<double>(spec_.layers));
  const std::string at = fmt::format("layers.{}.", layer);
  Block& b = blocks_[static_cast<size_t>(layer)];
  b.batch = &batch_;
  const auto affine = [&](const char* name, int64_t out, int64_t in, double std) {
    return Affine::declare(params, at + name, layer, out, in, std);
  };
  b.norm1 = Norm::declare(params, at + "norm1", layer, NormKind::layernorm, width, spec_.norm_eps);
  b.attention.heads = spec_.heads;
  b.attention.head_size = spec_.head_dim();
  b.attention.layer = layer;
  b.attention.q = affine("attn.q", width, width, spec_.init_std);
  b.attention.k = affine("attn.k", width, width, spec_.init_std);
  b.attention.v = affine("attn.v", width, width, spec_.init_std);
  b.attention.k.weight->first_of_input = b.attention.v.weight->first_of_input = b.attention.q.weight;
  b.attention.o = affine("attn.o", width, width, residual_std);
  b.norm2 = Norm::declare(params, at + "norm2", layer, NormKind::layernorm, width, spec_.norm_eps);
  b.mlp.activation = spec_.activation;
  b.mlp.up = affine("mlp.up", spec_.ffn_size, width, spec_.init_std);
  b.mlp.down = affine("mlp.down", width, spec_.ffn_size, residual_std);
}

Var Gpt::hidden(Tape& t, const BatchView& batch) {
  require_positions(batch.sequence());
  batch_ = batch;
  const int64_t n = batch.tokens.numel();
  batch_.positions = batch.positions.view({n});
  Var x = embedded(t, batch.tokens.view({n}), batch_.positions);
  for (size_t l = 0; l < blocks_.size(); ++l) x = t.layer(static_cast<int>(l), x, blocks_[l]);
  return to_head(t, x);
}

Tensor Gpt::decode(Tape& t, const Tensor& tokens, const Tensor& positions, DecodeCache& cache) {
  Var x = embedded(t, tokens, positions);
  for (const Block& b : blocks_) x = b.decode(t, x, cache);
  return cast(t, linear(t, to_head(t, x), *head_), DType::f32);
}

DecodeCache Gpt::make_cache(Arena& arena, int64_t batch, int64_t capacity) {
  require_positions(capacity);
  DecodeCache cache;
  const Shape shape{batch, capacity, spec_.hidden_size};
  for (int64_t l = 0; l < spec_.layers; ++l) {
    cache.keys.push_back(arena.alloc(shape, embed_->value.dtype));
    cache.values.push_back(arena.alloc(shape, embed_->value.dtype));
  }
  cache.lengths = arena.alloc({batch}, DType::i32);
  return cache;
}

double Gpt::flops_per_token(int64_t sequence) const {
  const double width = static_cast<double>(spec_.hidden_size), layers = static_cast<double>(spec_.layers);
  const double weights = layers * width * (4 * width + 2 * static_cast<double>(spec_.ffn_size)) +
                         width * static_cast<double>(spec_.vocab_size);
  return 6 * weights + 6 * layers * width * static_cast<double>(sequence);
}

}  // namespace

std::unique_ptr<LanguageModel> make_gpt(const ModelSpec& spec) { return std::make_unique<Gpt>(spec); }

}  // namespace osprey
