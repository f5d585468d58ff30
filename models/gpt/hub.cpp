// GPT-2 and OPT in Hugging Face directories: names of tensors and config.json, both ways.

#include <fmt/format.h>

#include "framework/files/file.h"
#include "kernels/core/check.h"
#include "models/hf/family.h"

namespace osprey {

using nlohmann::ordered_json;
using Rule = HubTensor::Rule;

namespace {

std::optional<std::string> nothing_beyond(const ModelSpec&) { return std::nullopt; }

/// Keys that must have this value, which is also what leaving them out means.
void require_flag(const HubConfig& c, const char* key, bool value) {
  require(c.flag(key, value) == value, c.where(), "{}: {} is not computed by Osprey", key, !value);
}

int64_t layers_of(const HubConfig& c, const char* key) {
  const int64_t layers = c.whole(key);
  constexpr int64_t most = 4096;  // as the recipe
  require(layers <= most, c.where(), "{} {} is more than {}", key, layers, most);
  return layers;
}

/// Tensors that are copied, a prefix and an Osprey name at a time.
struct Names {
  std::vector<HubTensor> all;
  void copy(const std::string& name, const std::string& from, const Shape& shape) {
    all.push_back({.name = name, .shape = shape, .rule = Rule::copy, .a = from});
  }
  void pair(const std::string& name, const std::string& from, const Shape& weight) {
    copy(name + ".weight", from + ".weight", weight);
    copy(name + ".bias", from + ".bias", {weight[0]});
  }
};

// ---- GPT-2 ------------------------------------------------------------------------------------------------

/// A Conv1D of transformers, (in, out), of one or several of our linear layers (out, in), side by side.
void conv1d(Names& names, const std::string& name, const std::vector<std::string>& from, int64_t out,
            int64_t in) {
  HubTensor weight{
      .name = name + ".weight", .shape = {in, out}, .rule = Rule::transposed, .a = from[0] + ".weight"};
  HubTensor bias{.name = name + ".bias", .shape = {out}, .rule = Rule::copy, .a = from[0] + ".bias"};
  for (size_t i = 1; i < from.size(); ++i) {
    weight.below.push_back(from[i] + ".weight");
    bias.below.push_back(from[i] + ".bias");
  }
  names.all.push_back(weight);
  names.all.push_back(bias);
}

std::vector<HubTensor> gpt2_tensors(const ModelSpec& s) {
  const int64_t C = s.hidden_size, F = s.ffn_size;
  Names names;
  names.copy("transformer.wte.weight", "embed.weight", {s.vocab_size, C});
  names.copy("transformer.wpe.weight", "positions.weight", {s.max_positions, C});
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string to = fmt::format("transformer.h.{}.", l), from = fmt::format("layers.{}.", l);
    names.pair(to + "ln_1", from + "norm1", {C});
    conv1d(names, to + "attn.c_attn", {from + "attn.q", from + "attn.k", from + "attn.v"}, 3 * C, C);
    conv1d(names, to + "attn.c_proj", {from + "attn.o"}, C, C);
    names.pair(to + "ln_2", from + "norm2", {C});
    conv1d(names, to + "mlp.c_fc", {from + "mlp.up"}, F, C);
    conv1d(names, to + "mlp.c_proj", {from + "mlp.down"}, C, F);
  }
  names.pair("transformer.ln_f", "norm", {C});
  if (!s.tie_embeddings) names.copy("lm_head.weight", "head.weight", {s.vocab_size, C});
  return names.all;
}

ModelSpec read_gpt2(const HubConfig& c) {
  ModelSpec s;
  s.family = ModelSpec::Family::gpt;
  s.activation = Activation::gelu;
  s.layers = layers_of(c, "n_layer");
  s.hidden_size = c.whole("n_embd");
  s.heads = c.whole("n_head");
  s.ffn_size = c.find("n_inner") ? c.whole("n_inner") : 4 * s.hidden_size;
  s.vocab_size = c.whole("vocab_size");
  s.max_positions = c.whole(c.find("n_positions") ? "n_positions" : "n_ctx");
  s.norm_eps = c.real("layer_norm_epsilon", 1e-5);
  s.init_std = c.real("initializer_range", 0.02);
  s.tie_embeddings = c.flag("tie_word_embeddings", true);
  const std::string activation = c.word("activation_function", "gelu_new");
  require(activation == "gelu_new" || activation == "gelu_pytorch_tanh", c.where(),
          "activation_function of gpt2 must be gelu_new, found {}", shown(activation));
  require_flag(c, "scale_attn_weights", true);
  require_flag(c, "scale_attn_by_inverse_layer_idx", false);
  require_flag(c, "add_cross_attention", false);
  return s;
}

ordered_json gpt2_config(const ModelSpec& s, const HubContext&) {
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"n_embd", s.hidden_size},
          {"n_layer", s.layers},
          {"n_head", s.heads},
          {"n_inner", s.ffn_size},
          {"n_positions", s.max_positions},
          {"n_ctx", s.max_positions},
          {"vocab_size", s.vocab_size},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", s.norm_eps},
          {"attn_pdrop", 0.0},
          {"embd_pdrop", 0.0},
          {"resid_pdrop", 0.0},
          {"tie_word_embeddings", s.tie_embeddings},
          {"initializer_range", s.init_std}};
}

// ---- OPT --------------------------------------------------------------------------------------------------

std::vector<HubTensor> opt_tensors(const ModelSpec& s) {
  const int64_t C = s.hidden_size, F = s.ffn_size;
  const std::string root = "model.decoder.";
  Names names;
  names.copy(root + "embed_tokens.weight", "embed.weight", {s.vocab_size, C});
  // Position p has row p + 2; the two before are those of padding, which nobody reads.
  names.all.push_back({.name = root + "embed_positions.weight",
                       .shape = {s.max_positions + 2, C},
                       .rule = Rule::copy,
                       .a = "positions.weight",
                       .unread_rows = 2});
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string to = root + fmt::format("layers.{}.", l), from = fmt::format("layers.{}.", l);
    names.pair(to + "self_attn_layer_norm", from + "norm1", {C});
    names.pair(to + "self_attn.q_proj", from + "attn.q", {C, C});
    names.pair(to + "self_attn.k_proj", from + "attn.k", {C, C});
    names.pair(to + "self_attn.v_proj", from + "attn.v", {C, C});
    names.pair(to + "self_attn.out_proj", from + "attn.o", {C, C});
    names.pair(to + "final_layer_norm", from + "norm2", {C});
    names.pair(to + "fc1", from + "mlp.up", {F, C});
    names.pair(to + "fc2", from + "mlp.down", {C, F});
  }
  names.pair(root + "final_layer_norm", "norm", {C});
  if (!s.tie_embeddings) names.copy("lm_head.weight", "head.weight", {s.vocab_size, C});
  return names.all;
}

constexpr double opt_eps = 1e-5;  // fixed in transformers

ModelSpec read_opt(const HubConfig& c) {
  ModelSpec s;
  s.family = ModelSpec::Family::gpt;
  s.activation = Activation::relu;
  s.layers = layers_of(c, "num_hidden_layers");
  s.hidden_size = c.whole("hidden_size");
  s.heads = c.whole("num_attention_heads");
  s.ffn_size = c.whole("ffn_dim");
  s.vocab_size = c.whole("vocab_size");
  s.max_positions = c.whole("max_position_embeddings", 2048);
  s.norm_eps = opt_eps;
  s.init_std = c.real("init_std", 0.02);
  s.tie_embeddings = c.flag("tie_word_embeddings", true);
  const std::string activation = c.word("activation_function", "relu");
  require(activation == "relu", c.where(), "activation_function of opt must be relu, found {}",
          shown(activation));
  const int64_t embedded = c.whole("word_embed_proj_dim", s.hidden_size);
  require(embedded == s.hidden_size, c.where(),
          "word_embed_proj_dim {} differs from hidden_size {}; projections of embeddings (opt-350m) are not "
          "computed by Osprey",
          embedded, s.hidden_size);
  require(c.flag("do_layer_norm_before", true), c.where(),
          "do_layer_norm_before: false (opt-350m) is not computed by Osprey, whose blocks norm first");
  require_flag(c, "_remove_final_layer_norm", false);
  require_flag(c, "enable_bias", true);
  require_flag(c, "layer_norm_elementwise_affine", true);
  return s;
}

ordered_json opt_config(const ModelSpec& s, const HubContext&) {
  return {{"architectures", {"OPTForCausalLM"}},
          {"model_type", "opt"},
          {"hidden_size", s.hidden_size},
          {"word_embed_proj_dim", s.hidden_size},
          {"ffn_dim", s.ffn_size},
          {"num_hidden_layers", s.layers},
          {"num_attention_heads", s.heads},
          {"max_position_embeddings", s.max_positions},
          {"vocab_size", s.vocab_size},
          {"activation_function", "relu"},
          {"do_layer_norm_before", true},
          {"enable_bias", true},
          {"layer_norm_elementwise_affine", true},
          {"dropout", 0.0},
          {"attention_dropout", 0.0},
          {"layerdrop", 0.0},
          {"tie_word_embeddings", s.tie_embeddings},
          {"init_std", s.init_std}};
}

}  // namespace

const HubFamily gpt2_hub{.types = {"gpt2"},
                         .read = read_gpt2,
                         .config = gpt2_config,
                         .tensors = gpt2_tensors,
                         .prefixes = {"transformer.", ""},
                         .ignored = {".attn.bias", ".attn.masked_bias"},
                         .beyond = nothing_beyond};

const HubFamily opt_hub{.types = {"opt"},
                        .read = read_opt,
                        .config = opt_config,
                        .tensors = opt_tensors,
                        .prefixes = {"model.decoder.", "decoder."},
                        .ignored = {},
                        .beyond = nothing_beyond};

}  // namespace osprey
