#pragma once
// The model section of a recipe: a family, its sizes and its variants.

#include <optional>

#include "framework/config/fields.h"
#include "framework/ops/pointwise.h"
#include "models/layers/attention_spec.h"
#include "models/layers/norm.h"
#include "models/layers/rope_spec.h"

namespace osprey {

struct ModelSpec {
  enum class Family { llama, gpt };
  Family family = Family::llama;
  int64_t layers = 8;
  int64_t hidden_size = 512;
  int64_t heads = 8;
  std::optional<int64_t> kv_heads;
  std::optional<int64_t> head_size;
  int64_t ffn_size = 1408;
  int64_t vocab_size = 8192;
  NormKind norm = NormKind::rmsnorm;
  double norm_eps = 1e-6;
  Activation activation = Activation::gelu;  // gpt only, as the number of positions
  int64_t max_positions = 1024;
  double rope_theta = 10000;
  std::optional<RopeScalingSpec> rope_scaling;
  bool qk_norm = false;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  bool tie_embeddings = false;
  bool embedding_projection = false;
  double init_std = 0.02;
  AttentionSpec attention;

  int64_t groups() const { return kv_heads.value_or(heads); }
  int64_t head_dim() const { return head_size.value_or(heads > 0 ? hidden_size / heads : 0); }

  void fields(Fields& f);
};

}  // namespace osprey
