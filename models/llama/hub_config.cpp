#include "models/llama/hub_config.h"

#include <algorithm>

#include "framework/files/file.h"
#include "kernels/core/check.h"

namespace osprey {

namespace {

using Json = HubConfig::Json;
using Kind = AttentionSpec::Kind;

void read_attention(const HubConfig& c, const Json& keys, AttentionSpec& a) {
  const std::string kind = c.word(keys, "kind", "softmax");
  if (kind == "gated") {
    a.kind = Kind::gated;
    const std::string gate = c.word(keys, "gate", "headwise");
    require(gate == "headwise" || gate == "elementwise", c.where(), "osprey.attention.gate '{}' is unknown",
            shown(gate));
    a.gate = gate == "headwise" ? AttentionSpec::Gate::headwise : AttentionSpec::Gate::elementwise;
  } else if (kind == "sink") {
    a.kind = Kind::sink;
  } else if (kind == "clipped_softmax") {
    a.kind = Kind::clipped_softmax;
    a.zeta = c.real(keys, "zeta", 1.0);
    if (keys.contains("gamma")) a.gamma = c.real(keys, "gamma", 0);
    if (keys.contains("alpha")) a.alpha = c.real(keys, "alpha", 0);
  } else {
    require(kind == "softmax", c.where(), "osprey.attention.kind '{}' is unknown", shown(kind));
  }
  a.window = c.whole_or_zero(keys, "window");
}

/// The keys that only Osprey writes.
void read_osprey(const HubConfig& c, ModelSpec& s) {
  const Json* keys = c.object(c.tree(), "osprey");
  require(keys, c.where(), "model_type is osprey, but there is no object 'osprey'");
  const std::string norm = c.word(*keys, "norm", "rmsnorm");
  require(norm == "rmsnorm" || norm == "layernorm", c.where(), "osprey.norm '{}' is unknown", shown(norm));
  s.norm = norm == "rmsnorm" ? NormKind::rmsnorm : NormKind::layernorm;
  s.qk_norm = c.flag(*keys, "qk_norm", false);
  s.qkv_bias = c.flag(*keys, "qkv_bias", false);
  s.output_bias = c.flag(*keys, "output_bias", false);
  s.mlp_bias = c.flag(*keys, "mlp_bias", false);
  if (const Json* attention = c.object(*keys, "attention")) read_attention(c, *attention, s.attention);
}

/// Tokens that a token sees, in the layers that have a window at all; 0: all.
int64_t read_window(const HubConfig& c, const std::string& type) {
  if (type == "mistral" && !c.tree().contains("sliding_window")) return 4096;  // as transformers
  if (type == "mistral" || c.flag("use_sliding_window", false)) return c.whole_or_zero("sliding_window");
  return 0;
}

/// The layers that have one: a list of all layers' types, or Qwen's "from this layer on".
std::vector<bool> windowed_layers(const HubConfig& c, const std::string& type, int64_t layers) {
  std::vector<bool> windowed(static_cast<size_t>(layers), true);
  if (const Json* types = c.find("layer_types")) {
    require(types->is_array() && types->size() == windowed.size(), c.where(),
            "layer_types must list {} layers, found {}", layers, shown(types->dump()));
    for (size_t i = 0; i < windowed.size(); ++i) {
      const Json& kind = (*types)[i];
      require(kind == "full_attention" || kind == "sliding_attention", c.where(),
              "layer_types: {} of layer {} is not computed by Osprey (full_attention, sliding_attention)",
              shown(kind.dump()), i);
      windowed[i] = kind == "sliding_attention";
    }
  } else if (type == "qwen2" || type == "qwen3") {
    require(c.find("max_window_layers"), c.where(),
            "use_sliding_window is true, but max_window_layers does not say for which layers");
    const int64_t full = std::min(c.whole_or_zero("max_window_layers"), layers);
    std::fill_n(windowed.begin(), full, false);
  }
  return windowed;
}

void read_windows(const HubConfig& c, const std::string& type, ModelSpec& s) {
  const int64_t window = type == "osprey" ? s.attention.window : read_window(c, type);
  if (window == 0) {
    const Json* types = c.find("layer_types");
    const bool windowed = types && types->is_array() &&
                          std::find(types->begin(), types->end(), "sliding_attention") != types->end();
    require(!windowed, c.where(), "layer_types has sliding_attention, but no sliding_window is used");
    return;
  }
  const std::vector<bool> windowed = windowed_layers(c, type, s.layers);
  const auto count = std::count(windowed.begin(), windowed.end(), true);
  if (count > 0) s.attention.window = window;
  if (count > 0 && count < s.layers) s.attention.window_layers = layer_list(windowed);
}

RopeScalingSpec read_scaling(const HubConfig& c, const std::string& type, const Json& keys) {
  RopeScalingSpec r;
  r.factor = c.real(keys, "factor", 0);
  require(r.factor >= 1, c.where(), "the factor of {} rope scaling must be at least 1, found {}", type,
          r.factor);
  if (type == "linear") {
    r.kind = RopeScalingSpec::Kind::linear;
    return r;
  }
  r.original_len = c.whole_or_zero(keys, "original_max_position_embeddings");
  if (type == "llama3") {
    require(
        r.original_len > 0 && keys.contains("low_freq_factor") && keys.contains("high_freq_factor"),
        c.where(),
        "llama3 rope scaling needs original_max_position_embeddings, low_freq_factor and high_freq_factor");
    r.low_freq_factor = c.real(keys, "low_freq_factor", 1);
    r.high_freq_factor = c.real(keys, "high_freq_factor", 4);
    return r;
  }
  r.kind = RopeScalingSpec::Kind::yarn;
  if (r.original_len == 0) r.original_len = c.whole("max_position_embeddings");
  r.beta_slow = c.real(keys, "beta_slow", 1);
  r.beta_fast = c.real(keys, "beta_fast", 32);
  if (HubConfig::find(keys, "attention_factor")) r.attention_factor = c.real(keys, "attention_factor", 1);
  for (const char* key : {"mscale", "mscale_all_dim"})
    require(!HubConfig::find(keys, key), c.where(), "{} of yarn rope scaling is not computed by Osprey", key);
  require(c.flag(keys, "truncate", true), c.where(), "truncate: false of yarn is not computed by Osprey");
  return r;
}

void read_rope(const HubConfig& c, ModelSpec& s) {
  s.rope_theta = c.real("rope_theta", 10000);
  const Json *older = c.object(c.tree(), "rope_scaling"), *newer = c.object(c.tree(), "rope_parameters");
  require(!older || !newer, c.where(),
          "gives both rope_scaling and rope_parameters; keep the one that is meant");
  const Json* rope = older ? older : newer;
  if (rope) {
    for (const char* nested : {"full_attention", "sliding_attention"})
      require(!rope->contains(nested), c.where(), "rope_parameters by layer type are not computed by Osprey");
    s.rope_theta = c.real(*rope, "rope_theta", s.rope_theta);
    const std::string type = c.word(*rope, "rope_type", c.word(*rope, "type", "default").c_str());
    require(type == "default" || type == "linear" || type == "llama3" || type == "yarn", c.where(),
            "rope scaling '{}' is not computed by Osprey (default, linear, llama3, yarn)", shown(type));
    if (type != "default") s.rope_scaling = read_scaling(c, type, *rope);
  }
  for (const Json* holder : {&c.tree(), rope})
    require(!holder || c.real(*holder, "partial_rotary_factor", 1) == 1, c.where(),
            "partial_rotary_factor must be 1: Osprey turns whole heads");
}

}  // namespace

ModelSpec read_llama_config(const HubConfig& c) {
  ModelSpec s;
  const std::string type = c.word("model_type", "");
  s.layers = c.whole("num_hidden_layers");
  constexpr int64_t most_layers =
      4096;  // as the recipe; layer lists are made of it before its rules are asked
  require(s.layers <= most_layers, c.where(), "num_hidden_layers {} is more than {}", s.layers, most_layers);
  s.hidden_size = c.whole("hidden_size");
  s.heads = c.whole("num_attention_heads");
  s.kv_heads = c.whole("num_key_value_heads", s.heads);
  s.head_size = c.whole("head_dim", type == "qwen3" ? 128 : s.hidden_size / s.heads);
  s.ffn_size = c.whole("intermediate_size");
  s.vocab_size = c.whole("vocab_size");
  s.norm_eps = c.real("rms_norm_eps", 1e-6);
  read_rope(c, s);
  const std::string activation = c.word("hidden_act", "silu");
  require(activation == "silu" || activation == "swish", c.where(), "hidden_act must be silu, found {}",
          shown(activation));
  const bool attention_bias = c.flag("attention_bias", false);
  require(!attention_bias || type != "mistral", c.where(), "attention_bias is true, which {} does not have",
          type);
  s.qkv_bias = attention_bias || type == "qwen2";
  s.output_bias = attention_bias && type != "qwen2";
  s.mlp_bias = c.flag("mlp_bias", false);
  require(!s.mlp_bias || type == "llama" || type == "osprey", c.where(),
          "mlp_bias is true, which {} does not have", type);
  s.tie_embeddings = c.flag("tie_word_embeddings", false);
  s.init_std = c.real("initializer_range", 0.02);
  s.qk_norm = type == "qwen3";
  if (type == "osprey") read_osprey(c, s);
  read_windows(c, type, s);
  return s;
}

}  // namespace osprey
