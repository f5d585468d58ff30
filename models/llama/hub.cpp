// The Llama family in Hugging Face directories: names of tensors and config.json, both ways.

#include <fmt/format.h>

#include "models/hf/family.h"
#include "models/llama/hub_config.h"

namespace osprey {

using nlohmann::ordered_json;
using Kind = AttentionSpec::Kind;

namespace {

std::vector<HubTensor> tensors(const ModelSpec& s) {
  using Rule = HubTensor::Rule;
  std::vector<HubTensor> all;
  const int64_t C = s.hidden_size, D = s.head_dim(), H = s.heads, G = s.groups(), F = s.ffn_size;
  const auto copy = [&](const std::string& name, const std::string& from, const Shape& shape) {
    all.push_back({name, shape, Rule::copy, from, "", {}});
  };
  const auto linear = [&](const std::string& name, const std::string& from, const Shape& shape, bool bias) {
    copy(name + ".weight", from + ".weight", shape);
    if (bias) copy(name + ".bias", from + ".bias", {shape[0]});
  };
  const auto norm = [&](const std::string& name, const std::string& from) {
    all.push_back({name + ".weight",
                   {C},
                   s.norm == NormKind::ssnorm ? Rule::broadcast : Rule::copy,
                   from + ".weight",
                   "",
                   {}});
    if (s.norm == NormKind::layernorm) copy(name + ".bias", from + ".bias", {C});
  };
  const auto table = [&](const std::string& name, const std::string& from, Rule rule,
                         const std::string& projection) {
    if (s.embedding_projection)
      all.push_back({name, {s.vocab_size, C}, rule, from, projection, {C, C}});
    else
      copy(name, from, {s.vocab_size, C});
  };

  table("model.embed_tokens.weight", "embed.weight", Rule::times_transposed, "embed_projection.weight");
  for (int64_t l = 0; l < s.layers; ++l) {
    const std::string to = fmt::format("model.layers.{}.", l), from = fmt::format("layers.{}.", l);
    norm(to + "input_layernorm", from + "norm1");
    linear(to + "self_attn.q_proj", from + "attn.q", {H * D, C}, s.qkv_bias);
    linear(to + "self_attn.k_proj", from + "attn.k", {G * D, C}, s.qkv_bias);
    linear(to + "self_attn.v_proj", from + "attn.v", {G * D, C}, s.qkv_bias);
    linear(to + "self_attn.o_proj", from + "attn.o", {C, H * D}, s.output_bias);
    if (s.qk_norm) {
      copy(to + "self_attn.q_norm.weight", from + "attn.q_norm.weight", {D});
      copy(to + "self_attn.k_norm.weight", from + "attn.k_norm.weight", {D});
    }
    if (s.attention.kind == Kind::gated) {
      const int64_t gates = s.attention.gate == AttentionSpec::Gate::elementwise ? H * D : H;
      linear(to + "self_attn.gate", from + "attn.gate", {gates, C}, true);
    }
    if (s.attention.kind == Kind::sink) copy(to + "self_attn.sinks", from + "attn.sink", {H});
    norm(to + "post_attention_layernorm", from + "norm2");
    linear(to + "mlp.gate_proj", from + "mlp.gate", {F, C}, s.mlp_bias);
    linear(to + "mlp.up_proj", from + "mlp.up", {F, C}, s.mlp_bias);
    linear(to + "mlp.down_proj", from + "mlp.down", {C, F}, s.mlp_bias);
  }
  norm("model.norm", "norm");
  if (!s.tie_embeddings) table("lm_head.weight", "head.weight", Rule::times, "head_projection.weight");
  return all;
}

std::optional<std::string> beyond(const ModelSpec& s) {
  if (s.norm == NormKind::layernorm) return "model.norm: layernorm";
  switch (s.attention.kind) {
    case Kind::softmax:
      break;
    case Kind::sink:
      return "model.attention.kind: sink";
    case Kind::gated:
      return "model.attention.kind: gated";
    case Kind::clipped_softmax:
      return "model.attention.kind: clipped_softmax";
  }
  // Biases as Llama (attention_bias, mlp_bias), Qwen2 (queries, keys, values) or Qwen3 (attention_bias) have.
  const bool window = s.attention.window > 0, all = s.qkv_bias && s.output_bias,
             none = !s.qkv_bias && !s.output_bias;
  if (s.output_bias && (!s.qkv_bias || (window && !s.qk_norm))) return "model.output_bias with these others";
  if (s.qk_norm && !all && !none) return "model.qkv_bias with qk_norm and without output_bias";
  if (s.mlp_bias && (s.qk_norm || window || (!all && !none))) return "model.mlp_bias with these others";
  if (!s.attention.window_layers.empty() && !s.qk_norm && !s.qkv_bias) return "model.attention.window_layers";
  return std::nullopt;
}

/// What the family's own keys say, for directories that only Osprey loads.
ordered_json osprey_keys(const ModelSpec& s) {
  ordered_json keys = {{"norm", s.norm == NormKind::layernorm ? "layernorm" : "rmsnorm"},
                       {"qk_norm", s.qk_norm},
                       {"qkv_bias", s.qkv_bias},
                       {"output_bias", s.output_bias},
                       {"mlp_bias", s.mlp_bias}};
  const AttentionSpec& a = s.attention;
  ordered_json& attention = keys["attention"] = ordered_json::object();
  switch (a.kind) {
    case Kind::softmax:
      attention["kind"] = "softmax";
      break;
    case Kind::sink:
      attention["kind"] = "sink";
      break;
    case Kind::gated:
      attention["kind"] = "gated";
      attention["gate"] = a.gate == AttentionSpec::Gate::headwise ? "headwise" : "elementwise";
      break;
    case Kind::clipped_softmax:
      attention["kind"] = "clipped_softmax";
      attention["zeta"] = a.zeta;
      if (a.gamma) attention["gamma"] = *a.gamma;
      if (a.alpha) attention["alpha"] = *a.alpha;
      break;
  }
  if (a.window > 0) attention["window"] = a.window;
  return keys;
}

ordered_json rope_scaling(const ModelSpec& s) {
  if (!s.rope_scaling) return nullptr;
  const RopeScalingSpec& r = *s.rope_scaling;
  ordered_json keys = {{"rope_type", ""}, {"factor", r.factor}};
  if (r.kind != RopeScalingSpec::Kind::linear) keys["original_max_position_embeddings"] = r.original_len;
  switch (r.kind) {
    case RopeScalingSpec::Kind::linear:
      keys["rope_type"] = "linear";
      break;
    case RopeScalingSpec::Kind::llama3:
      keys["rope_type"] = "llama3";
      keys["low_freq_factor"] = r.low_freq_factor;
      keys["high_freq_factor"] = r.high_freq_factor;
      break;
    case RopeScalingSpec::Kind::yarn:
      keys["rope_type"] = "yarn";
      keys["beta_fast"] = r.beta_fast;
      keys["beta_slow"] = r.beta_slow;
      keys["attention_factor"] = r.magnitude();  // some readers compute it from other keys
      break;
  }
  return keys;
}

/// The architecture of transformers that computes this spec; "" where none does.
std::string model_type(const ModelSpec& s) {
  if (beyond(s)) return "";
  if (s.qk_norm) return "qwen3";
  if (s.qkv_bias && !s.output_bias) return "qwen2";
  return s.attention.window > 0 ? "mistral" : "llama";
}

/// The keys of windows, as Qwen2 and Qwen3 have them.
void add_qwen_window(ordered_json& c, const ModelSpec& s) {
  const bool window = s.attention.window > 0;
  c["use_sliding_window"] = window;
  c["sliding_window"] = window ? ordered_json(s.attention.window) : ordered_json(nullptr);
  int64_t first = 0;  // layer that has one; readers of before layer_types know no more
  while (first < s.layers && s.attention.window_of(first) == 0) ++first;
  c["max_window_layers"] = first;
}

ordered_json config(const ModelSpec& s, const HubContext& context) {
  const std::string type = model_type(s);
  const char* architecture = type == "qwen3"     ? "Qwen3ForCausalLM"
                             : type == "qwen2"   ? "Qwen2ForCausalLM"
                             : type == "mistral" ? "MistralForCausalLM"
                             : type == "llama"   ? "LlamaForCausalLM"
                                                 : "OspreyForCausalLM";
  ordered_json c = {
      {"architectures", {architecture}},   {"model_type", type.empty() ? "osprey" : type},
      {"hidden_size", s.hidden_size},      {"intermediate_size", s.ffn_size},
      {"num_hidden_layers", s.layers},     {"num_attention_heads", s.heads},
      {"num_key_value_heads", s.groups()}, {"head_dim", s.head_dim()},
      {"vocab_size", s.vocab_size},        {"max_position_embeddings", context.sequence_len},
      {"rms_norm_eps", s.norm_eps},        {"rope_theta", s.rope_theta},
      {"rope_scaling", rope_scaling(s)},   {"hidden_act", "silu"},
      {"attention_dropout", 0.0},          {"tie_word_embeddings", s.tie_embeddings},
      {"initializer_range", s.init_std},
  };
  if (type != "qwen2") c["attention_bias"] = s.qkv_bias && s.output_bias;
  if (type == "qwen2" || type == "qwen3") {
    add_qwen_window(c, s);
  } else {
    c["mlp_bias"] = s.mlp_bias;
    if (type == "mistral") c["sliding_window"] = s.attention.window;
  }
  if (!s.attention.window_layers.empty()) {
    ordered_json& types = c["layer_types"] = ordered_json::array();
    for (int64_t l = 0; l < s.layers; ++l)
      types.push_back(s.attention.window_of(l) > 0 ? "sliding_attention" : "full_attention");
  }
  if (type.empty()) c["osprey"] = osprey_keys(s);
  return c;
}

}  // namespace

const HubFamily llama_hub{.types = {"llama", "mistral", "qwen2", "qwen3", "osprey"},
                          .read = read_llama_config,
                          .config = config,
                          .tensors = tensors,
                          .prefixes = {"model.", ""},
                          .ignored = {".rotary_emb.inv_freq"},
                          .beyond = beyond};

}  // namespace osprey
