#include "models/llama/llama.h"

#include <cmath>
#include <deque>

#include "framework/ops/attention.h"
#include "framework/ops/cross_entropy.h"
#include "framework/ops/linear.h"
#include "framework/ops/pointwise.h"
#include "framework/ops/rope.h"

namespace osprey {

namespace {

/// x + bias in place, or x where there is none.
Var with_bias(Tape& t, Var x, Parameter* bias) {
  Parameter* const one[] = {bias};
  return bias ? add_biases(t, x, one) : x;
}

struct Attention {
  const ModelSpec* spec = nullptr;
  int layer = 0;
  int64_t window = 0;
  RopeScaling scaling;
  std::optional<kernels::Clip> clip;
  Parameter *q = nullptr, *k = nullptr, *v = nullptr, *o = nullptr;
  Parameter *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr, *o_bias = nullptr;  // null: none
  Parameter *q_norm = nullptr, *k_norm = nullptr;                                        // (D), qk_norm only
  Parameter *gate_weight = nullptr, *gate_bias = nullptr;  // (H or H*D, C) and (H or H*D), gated only
  Parameter* sink = nullptr;                               // (H), sink only

  static Var leaf_or_none(Tape& t, Parameter* p) { return p ? t.leaf(*p) : Var{}; }

  Var projected(Tape& t, Var x, const Tensor& positions) const {  // (N, C) -> (N, (H + 2G) D)
    Parameter* const weights[] = {q, k, v};
    const RopeArgs args{.heads = spec->heads,
                        .kv_heads = spec->groups(),
                        .head_size = spec->head_dim(),
                        .theta = spec->rope_theta,
                        .scaling = scaling,
                        .eps = static_cast<float>(spec->norm_eps),
                        .positions = positions};
    Var qkv = linear(t, x, weights);
    if (q_bias) {
      Parameter* const biases[] = {q_bias, k_bias, v_bias};
      qkv = add_biases(t, qkv, biases);
    }
    return rope(t, qkv, args, leaf_or_none(t, q_norm), leaf_or_none(t, k_norm));
  }

  Var gate_logits(Tape& t, Var x) const {
    return gate_weight ? add_bias(t, linear(t, x, *gate_weight), t.leaf(*gate_bias)) : Var{};
  }

  Var output(Tape& t, Var y) const { return with_bias(t, linear(t, y, *o), o_bias); }  // (N, H D) -> (N, C)

  AttentionArgs args(int64_t batch, const Tensor& document_start) const {
    return {.batch = batch,
            .heads = spec->heads,
            .kv_heads = spec->groups(),
            .head_size = spec->head_dim(),
            .document_start = document_start,
            .clip = clip,
            .window = window};
  }

  Var operator()(Tape& t, Var x, const BatchView& batch) const {  // (N, C) -> (N, C)
    const Var qkv = projected(t, x, batch.positions);
    const Var y = attention(t, qkv, args(batch.batch(), batch.document_start), gate_logits(t, x),
                            leaf_or_none(t, sink));
    t.observe("attention_output", t.value(y));
    return output(t, y);
  }

  Var decode(Tape& t, Var x, const Tensor& positions, DecodeCache& cache) const {  // (B, C) -> (B, C)
    const Var qkv = projected(t, x, positions);
    const size_t l = static_cast<size_t>(layer);
    const Var y = cached_attention(t, qkv, args(t.value(x).rows(), {}), gate_logits(t, x),
                                   leaf_or_none(t, sink), cache.keys[l], cache.values[l], cache.lengths);
    return output(t, y);
  }
};

struct Mlp {
  Parameter *gate = nullptr, *up = nullptr, *down = nullptr;
  Parameter *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;  // null: none

  Var operator()(Tape& t, Var x) const {  // (N, C) -> (N, C)
    Parameter* const weights[] = {gate, up};
    Var gate_up = linear(t, x, weights);
    if (gate_bias) {
      Parameter* const biases[] = {gate_bias, up_bias};
      gate_up = add_biases(t, gate_up, biases);
    }
    const Var h = swiglu(t, gate_up);
    t.observe("down_input", t.value(h));
    return with_bias(t, linear(t, h, *down), down_bias);
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

  Var decode(Tape& t, Var x, const Tensor& positions, DecodeCache& cache) const {
    const NormedSum h = norm2.of_sum(t, x, attention.decode(t, norm1(t, x), positions, cache));
    return add(t, h.sum, mlp(t, h.normed));
  }
};

class Llama final : public LanguageModel {
 public:
  Llama(const ModelSpec& spec, int64_t sequence_len) : spec_(spec), sequence_len_(sequence_len) {}

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
  Var embedded(Tape& t, const Tensor& tokens) const;
  Var to_head(Tape& t, Var x) const;

  ModelSpec spec_;
  int64_t sequence_len_;
  Parameter *embed_ = nullptr, *embed_projection_ = nullptr;
  std::deque<Block> blocks_;
  Norm norm_;
  Parameter *head_projection_ = nullptr, *head_ = nullptr;
  BatchView batch_;
};

void Llama::declare(ParamStore& params) {
  const Init normal{Init::Kind::normal, spec_.init_std};
  const int64_t width = spec_.hidden_size;
  embed_ = &params.add("embed.weight", -1, {spec_.vocab_size, width}, normal);
  if (spec_.embedding_projection)
    embed_projection_ =
        &params.add("embed_projection.weight", -1, {width, width}, {Init::Kind::orthogonal, 0});
  blocks_.resize(static_cast<size_t>(spec_.layers));
  for (int l = 0; l < static_cast<int>(spec_.layers); ++l) declare_block(params, l);
  norm_ = Norm::declare(params, "norm", -1, spec_.norm, width, spec_.norm_eps);
  if (spec_.embedding_projection)
    head_projection_ = &params.add("head_projection.weight", -1, {width, width}, {Init::Kind::orthogonal, 0});
  head_ = spec_.tie_embeddings ? embed_ : &params.add("head.weight", -1, {spec_.vocab_size, width}, normal);
  embed_->by_rows = head_->by_rows = head_ != embed_;
}

void Llama::declare_block(ParamStore& params, int layer) {
  const Init normal{Init::Kind::normal, spec_.init_std};
  const Init residual{Init::Kind::normal,
                      spec_.init_std / std::sqrt(2.0 * static_cast<double>(spec_.layers))};
  const int64_t width = spec_.hidden_size, dim = spec_.head_dim(), heads = spec_.heads * dim,
                groups = spec_.groups() * dim;
  const std::string at = fmt::format("layers.{}.", layer);
  Block& b = blocks_[static_cast<size_t>(layer)];
  b.batch = &batch_;

  b.norm1 = Norm::declare(params, at + "norm1", layer, spec_.norm, width, spec_.norm_eps);
  Attention& a = b.attention;
  a.spec = &spec_;
  a.layer = layer;
  a.window = spec_.attention.window_of(layer);
  if (spec_.rope_scaling) a.scaling = spec_.rope_scaling->scaling();
  a.q = &params.add(at + "attn.q.weight", layer, {heads, width}, normal);
  a.k = &params.add(at + "attn.k.weight", layer, {groups, width}, normal);
  a.v = &params.add(at + "attn.v.weight", layer, {groups, width}, normal);
  const auto bias = [&](const char* name, int64_t size) {
    return &params.add(at + name + ".bias", layer, {size}, {Init::Kind::constant, 0.0});
  };
  if (spec_.qkv_bias) {
    a.q_bias = bias("attn.q", heads);
    a.k_bias = bias("attn.k", groups);
    a.v_bias = bias("attn.v", groups);
  }
  a.k->first_of_input = a.v->first_of_input = a.q;
  if (spec_.qk_norm) {
    a.q_norm = &params.add(at + "attn.q_norm.weight", layer, {dim}, {Init::Kind::constant, 1.0});
    a.k_norm = &params.add(at + "attn.k_norm.weight", layer, {dim}, {Init::Kind::constant, 1.0});
  }
  const AttentionSpec& variant = spec_.attention;
  if (variant.kind == AttentionSpec::Kind::clipped_softmax)
    a.clip = kernels::Clip{.zeta = static_cast<float>(variant.zeta),
                           .gamma = static_cast<float>(variant.clip_gamma(sequence_len_))};
  if (variant.kind == AttentionSpec::Kind::gated) {
    const int64_t gates = variant.gate == AttentionSpec::Gate::headwise ? spec_.heads : heads;
    a.gate_weight = &params.add(at + "attn.gate.weight", layer, {gates, width}, normal);
    a.gate_bias =
        &params.add(at + "attn.gate.bias", layer, {gates}, {Init::Kind::constant, variant.bias_init});
  }
  if (variant.kind == AttentionSpec::Kind::sink)
    a.sink = &params.add(at + "attn.sink", layer, {spec_.heads}, normal);
  a.o = &params.add(at + "attn.o.weight", layer, {width, heads}, residual);
  if (spec_.output_bias) a.o_bias = bias("attn.o", width);

  b.norm2 = Norm::declare(params, at + "norm2", layer, spec_.norm, width, spec_.norm_eps);
  b.mlp.gate = &params.add(at + "mlp.gate.weight", layer, {spec_.ffn_size, width}, normal);
  b.mlp.up = &params.add(at + "mlp.up.weight", layer, {spec_.ffn_size, width}, normal);
  b.mlp.up->first_of_input = b.mlp.gate;
  b.mlp.down = &params.add(at + "mlp.down.weight", layer, {width, spec_.ffn_size}, residual);
  if (!spec_.mlp_bias) return;
  b.mlp.gate_bias = bias("mlp.gate", spec_.ffn_size);
  b.mlp.up_bias = bias("mlp.up", spec_.ffn_size);
  b.mlp.down_bias = bias("mlp.down", width);
}

Var Llama::embedded(Tape& t, const Tensor& tokens) const {
  const Var x = embedding(t, tokens, t.leaf(*embed_));
  return embed_projection_ ? linear(t, x, *embed_projection_) : x;
}

Var Llama::to_head(Tape& t, Var x) const {
  const Var h = norm_(t, x);
  t.observe("final_hidden", t.value(h));
  return head_projection_ ? linear(t, h, *head_projection_) : h;
}

Var Llama::hidden(Tape& t, const BatchView& batch) {
  batch_ = batch;
  const int64_t n = batch.tokens.numel();
  batch_.positions = batch.positions.view({n});
  Var x = embedded(t, batch.tokens.view({n}));
  for (size_t l = 0; l < blocks_.size(); ++l) x = t.layer(static_cast<int>(l), x, blocks_[l]);
  return to_head(t, x);
}

Tensor Llama::decode(Tape& t, const Tensor& tokens, const Tensor& positions, DecodeCache& cache) {
  Var x = embedded(t, tokens);
  for (const Block& b : blocks_) x = b.decode(t, x, positions, cache);
  return cast(t, linear(t, to_head(t, x), *head_), DType::f32);
}

DecodeCache Llama::make_cache(Arena& arena, int64_t batch, int64_t capacity) {
  DecodeCache cache;
  const Shape shape{batch, capacity, spec_.groups() * spec_.head_dim()};
  for (int64_t l = 0; l < spec_.layers; ++l) {
    cache.keys.push_back(arena.alloc(shape, embed_->value.dtype));
    cache.values.push_back(arena.alloc(shape, embed_->value.dtype));
  }
  cache.lengths = arena.alloc({batch}, DType::i32);
  return cache;
}

double Llama::flops_per_token(int64_t sequence) const {
  const double width = static_cast<double>(spec_.hidden_size), dim = static_cast<double>(spec_.head_dim());
  const double heads = static_cast<double>(spec_.heads) * dim,
               groups = static_cast<double>(spec_.groups()) * dim;
  const double layers = static_cast<double>(spec_.layers);
  double weights =
      layers * (width * (2 * heads + 2 * groups) + 3 * width * static_cast<double>(spec_.ffn_size));
  weights += width * static_cast<double>(spec_.vocab_size);
  for (const Block& b : blocks_)
    if (b.attention.gate_weight) weights += static_cast<double>(b.attention.gate_weight->shape.numel());
  if (spec_.embedding_projection) weights += 2 * width * width;
  // A token sees half of the sequence on average; with a window of w, w (1 - w / (2 T)).
  const double tokens = static_cast<double>(sequence);
  double seen = 0;
  for (const Block& b : blocks_) {
    const double own = static_cast<double>(b.attention.window);
    const double window = own > 0 ? std::min(own, tokens) : tokens;
    seen += window * (2 - window / tokens);
  }
  return 6 * weights + 6 * heads * seen;
}

}  // namespace

std::unique_ptr<LanguageModel> make_llama(const ModelSpec& spec, int64_t sequence_len) {
  return std::make_unique<Llama>(spec, sequence_len);
}

}  // namespace osprey
