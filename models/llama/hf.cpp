#include "models/llama/hf.h"

#include "framework/memory/staging.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "framework/eval/round_to_nearest.h"
#include "framework/files/json.h"
#include "framework/quant/step_sizes.h"
#include "kernels/core/check.h"

namespace osprey {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;
using Kind = AttentionSpec::Kind;

namespace {

constexpr int64_t most_layers = 10'000;

bool plain(const ModelSpec& spec) { return !beyond_transformers(spec); }

std::vector<HubTensor> hub_tensors(const ModelSpec& s) {
  using Rule = HubTensor::Rule;
  std::vector<HubTensor> all;
  const int64_t C = s.hidden_size, D = s.head_dim(), H = s.heads, G = s.groups(), F = s.ffn_size;
  const auto copy = [&](const std::string& name, const std::string& from, const Shape& shape) {
    all.push_back({name, shape, Rule::copy, from, "", {}});
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
    copy(to + "self_attn.q_proj.weight", from + "attn.q.weight", {H * D, C});
    copy(to + "self_attn.k_proj.weight", from + "attn.k.weight", {G * D, C});
    copy(to + "self_attn.v_proj.weight", from + "attn.v.weight", {G * D, C});
    copy(to + "self_attn.o_proj.weight", from + "attn.o.weight", {C, H * D});
    if (s.qk_norm) {
      copy(to + "self_attn.q_norm.weight", from + "attn.q_norm.weight", {D});
      copy(to + "self_attn.k_norm.weight", from + "attn.k_norm.weight", {D});
    }
    if (s.attention.kind == Kind::gated) {
      const int64_t gates = s.attention.gate == AttentionSpec::Gate::elementwise ? H * D : H;
      copy(to + "self_attn.gate.weight", from + "attn.gate.weight", {gates, C});
      copy(to + "self_attn.gate.bias", from + "attn.gate.bias", {gates});
    }
    if (s.attention.kind == Kind::sink) copy(to + "self_attn.sinks", from + "attn.sink", {H});
    norm(to + "post_attention_layernorm", from + "norm2");
    copy(to + "mlp.gate_proj.weight", from + "mlp.gate.weight", {F, C});
    copy(to + "mlp.up_proj.weight", from + "mlp.up.weight", {F, C});
    copy(to + "mlp.down_proj.weight", from + "mlp.down.weight", {C, F});
  }
  norm("model.norm", "norm");
  if (!s.tie_embeddings) table("lm_head.weight", "head.weight", Rule::times, "head_projection.weight");
  return all;
}

/// What the family's own keys say, for directories that only Osprey loads.
ordered_json osprey_keys(const ModelSpec& s) {
  ordered_json keys = {{"norm", s.norm == NormKind::layernorm ? "layernorm" : "rmsnorm"},
                       {"qk_norm", s.qk_norm}};
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

template <class T>
ordered_json or_null(const std::optional<T>& v) {
  return v ? ordered_json(*v) : ordered_json(nullptr);
}

/// Marks the tensors whose parameters a group packs.
void pack_tensors(std::vector<HubTensor>& tensors, const QuantizationConfig& quantization) {
  for (HubTensor& t : tensors)
    if (const QuantGroupSpec* group = quantization.packs(t.a))
      t.packed = {.format = group->weights->block_format(),
                  .scale = group->weights->scale,
                  .rotation = forward_rotation(*group, quantization.seed)};
}

ordered_json config_json(const ModelSpec& s, const HubContext& context) {
  const bool qwen = plain(s) && s.qk_norm, mistral = plain(s) && !qwen && s.attention.window > 0;
  const char* family = qwen ? "qwen3" : mistral ? "mistral" : plain(s) ? "llama" : "osprey";
  const char* architecture = qwen       ? "Qwen3ForCausalLM"
                             : mistral  ? "MistralForCausalLM"
                             : plain(s) ? "LlamaForCausalLM"
                                        : "OspreyForCausalLM";
  const ordered_json window =
      s.attention.window > 0 ? ordered_json(s.attention.window) : ordered_json(nullptr);
  ordered_json c = {
      {"architectures", {architecture}},
      {"model_type", family},
      {"hidden_size", s.hidden_size},
      {"intermediate_size", s.ffn_size},
      {"num_hidden_layers", s.layers},
      {"num_attention_heads", s.heads},
      {"num_key_value_heads", s.groups()},
      {"head_dim", s.head_dim()},
      {"vocab_size", s.vocab_size},
      {"max_position_embeddings", context.sequence_len},
      {"rms_norm_eps", s.norm_eps},
      {"rope_theta", s.rope_theta},
      {"rope_scaling", nullptr},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", s.tie_embeddings},
      {"initializer_range", s.init_std},
      {"bos_token_id", or_null(context.bos_id)},
      {"eos_token_id", or_null(context.eos_id)},
      {"torch_dtype", context.dtype == DType::bf16 ? "bfloat16" : "float32"},
      {"use_cache", true},
  };
  if (qwen) {
    c["use_sliding_window"] = s.attention.window > 0;
    c["sliding_window"] = window;
    c["max_window_layers"] = s.attention.window > 0 ? 0 : s.layers;  // layers from this one on have it
  } else {
    c["mlp_bias"] = false;
    if (mistral) c["sliding_window"] = window;
  }
  if (!plain(s)) c["osprey"] = osprey_keys(s);
  return c;
}

/// Typed access to a config that may hold anything.
struct Config {
  std::string where;
  json tree;

  const json* find(const char* key) const {
    const auto it = tree.find(key);
    return it == tree.end() || it->is_null() ? nullptr : &*it;
  }
  int64_t whole(const char* key) const {
    const json* v = find(key);
    require(
        v && v->is_number_unsigned() && v->get<uint64_t>() > 0 && v->get<uint64_t>() <= (uint64_t{1} << 40),
        where, "{} must be a positive whole number, found {}", key, v ? shown(v->dump()) : "nothing");
    return v->get<int64_t>();
  }
  int64_t whole(const char* key, int64_t otherwise) const { return find(key) ? whole(key) : otherwise; }
  /// 0 where the key is absent or null.
  int64_t whole_or_zero(const json& holder, const char* key) const {
    const auto it = holder.find(key);
    if (it == holder.end() || it->is_null()) return 0;
    require(it->is_number_unsigned() && it->get<uint64_t>() <= (uint64_t{1} << 40), where,
            "{} must be a whole number, found {}", key, shown(it->dump()));
    return it->get<int64_t>();
  }
  double real(const json& holder, const char* key, double otherwise) const {
    const auto it = holder.find(key);
    if (it == holder.end() || it->is_null()) return otherwise;
    require(it->is_number(), where, "{} must be a number, found {}", key, shown(it->dump()));
    return it->get<double>();
  }
  double real(const char* key, double otherwise) const { return real(tree, key, otherwise); }
  bool flag(const json& holder, const char* key, bool otherwise) const {
    const auto it = holder.find(key);
    if (it == holder.end() || it->is_null()) return otherwise;
    require(it->is_boolean(), where, "{} must be true or false, found {}", key, shown(it->dump()));
    return it->get<bool>();
  }
  bool flag(const char* key, bool otherwise) const { return flag(tree, key, otherwise); }
  std::string word(const json& holder, const char* key, const char* otherwise) const {
    const auto it = holder.find(key);
    if (it == holder.end() || it->is_null()) return otherwise;
    require(it->is_string(), where, "{} must be a string, found {}", key, shown(it->dump()));
    return it->get<std::string>();
  }
  std::string word(const char* key, const char* otherwise) const { return word(tree, key, otherwise); }
  /// A token id, or the first of a list of them.
  std::optional<int32_t> token(const char* key) const {
    const json* v = find(key);
    if (v && v->is_array()) v = v->empty() ? nullptr : &v->front();
    if (!v) return std::nullopt;
    require(v->is_number_unsigned() && v->get<uint64_t>() < (uint64_t{1} << 31), where,
            "{} must be a token, found {}", key, shown(v->dump()));
    return v->get<int32_t>();
  }
};

void read_attention(const Config& c, const json& keys, AttentionSpec& a) {
  const std::string kind = c.word(keys, "kind", "softmax");
  if (kind == "gated") {
    a.kind = Kind::gated;
    const std::string gate = c.word(keys, "gate", "headwise");
    require(gate == "headwise" || gate == "elementwise", c.where, "osprey.attention.gate '{}' is unknown",
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
    require(kind == "softmax", c.where, "osprey.attention.kind '{}' is unknown", shown(kind));
  }
  a.window = c.whole_or_zero(keys, "window");
}

/// Tokens that a token sees in every layer, by the keys of the family; 0: all.
int64_t read_window(const Config& c, const std::string& type, int64_t layers) {
  if (type == "mistral") return c.whole_or_zero(c.tree, "sliding_window");
  if (type != "qwen3" || !c.flag("use_sliding_window", false)) return 0;
  require(c.find("max_window_layers"), c.where,
          "use_sliding_window is true, but max_window_layers does not say for which layers");
  const int64_t full_layers = c.whole_or_zero(c.tree, "max_window_layers");
  if (full_layers >= layers) return 0;
  require(
      full_layers == 0, c.where,
      "max_window_layers {} gives a sliding window to some layers only; Osprey computes one for all or none",
      full_layers);
  return c.whole_or_zero(c.tree, "sliding_window");
}

/// The keys that only Osprey writes.
void read_osprey(const Config& c, ModelSpec& s) {
  const json* keys = c.find("osprey");
  require(keys && keys->is_object(), c.where, "model_type is osprey, but there is no object 'osprey'");
  const std::string norm = c.word(*keys, "norm", "rmsnorm");
  require(norm == "rmsnorm" || norm == "layernorm", c.where, "osprey.norm '{}' is unknown", shown(norm));
  s.norm = norm == "rmsnorm" ? NormKind::rmsnorm : NormKind::layernorm;
  s.qk_norm = c.flag(*keys, "qk_norm", false);
  if (keys->contains("attention")) {
    const json& attention = (*keys)["attention"];
    require(attention.is_object(), c.where, "osprey.attention must be an object");
    read_attention(c, attention, s.attention);
  }
}

ModelSpec read_model(const Config& c) {
  ModelSpec s;
  const std::string type = c.word("model_type", "");
  require(type == "llama" || type == "mistral" || type == "qwen3" || type == "osprey", c.where,
          "model_type '{}' is not one that Osprey computes (llama, mistral, qwen3, osprey)", shown(type));
  s.layers = c.whole("num_hidden_layers");
  require(s.layers <= most_layers, c.where, "num_hidden_layers {} is more than {}", s.layers, most_layers);
  s.hidden_size = c.whole("hidden_size");
  s.heads = c.whole("num_attention_heads");
  s.kv_heads = c.whole("num_key_value_heads", s.heads);
  s.head_size = c.whole("head_dim", s.hidden_size / s.heads);
  s.ffn_size = c.whole("intermediate_size");
  s.vocab_size = c.whole("vocab_size");
  s.norm_eps = c.real("rms_norm_eps", 1e-6);
  s.rope_theta = c.real("rope_theta", 10000);
  if (const json* rope = c.find("rope_parameters")) {
    require(rope->is_object(), c.where, "rope_parameters must be an object");
    s.rope_theta = c.real(*rope, "rope_theta", s.rope_theta);
    const std::string kind = c.word(*rope, "rope_type", "default");
    require(kind == "default", c.where, "rope_parameters.rope_type '{}' is not computed by Osprey",
            shown(kind));
  }
  require(!c.find("rope_scaling"), c.where, "rope_scaling is not computed by Osprey");
  require(c.word("hidden_act", "silu") == "silu", c.where, "hidden_act must be silu, found {}",
          shown(c.word("hidden_act", "")));
  for (const char* bias : {"attention_bias", "mlp_bias"})
    require(!c.flag(bias, false), c.where, "{} is true; Osprey's linear layers have no bias", bias);
  s.attention.window = read_window(c, type, s.layers);
  s.tie_embeddings = c.flag("tie_word_embeddings", false);
  s.init_std = c.real("initializer_range", 0.02);
  s.qk_norm = type == "qwen3";
  if (type == "osprey") read_osprey(c, s);
  // The rules of the recipe hold for a config, too (heads divide the width, ...).
  read_spec<ModelSpec>(dump_spec(s), c.where);
  return s;
}

/// Buffers that old exporters wrote and no one needs.
bool ignorable(const std::string& name) { return name.ends_with(".rotary_emb.inv_freq"); }

}  // namespace

std::optional<std::string> beyond_transformers(const ModelSpec& s) {
  if (s.norm == NormKind::layernorm) return "model.norm: layernorm";
  switch (s.attention.kind) {
    case Kind::softmax:
      return std::nullopt;
    case Kind::sink:
      return "model.attention.kind: sink";
    case Kind::gated:
      return "model.attention.kind: gated";
    case Kind::clipped_softmax:
      return "model.attention.kind: clipped_softmax";
  }
  return std::nullopt;
}

HubLayout hub_layout(const ModelSpec& spec, const HubContext& context,
                     const QuantizationConfig* quantization) {
  ordered_json generation = {{"do_sample", true}, {"eos_token_id", or_null(context.eos_id)}};
  if (context.bos_id) generation["bos_token_id"] = *context.bos_id;
  ordered_json config = config_json(spec, context);
  std::vector<HubTensor> tensors = hub_tensors(spec);
  if (quantization) {
    config["quantization_config"] = to_json(*quantization);
    pack_tensors(tensors, *quantization);
  }
  return {config.dump(2) + "\n", generation.dump(2) + "\n", std::move(tensors)};
}

void add_step_sizes(HubLayout& layout, const ParamStore& params) {
  std::vector<HubTensor> steps;
  const auto add = [&](const std::string& name, const Parameter& step) {
    steps.push_back({.name = name, .shape = step.shape, .a = step.name, .b = "", .b_shape = {}});
  };
  for (HubTensor& t : layout.tensors) {
    const Parameter* p = params.find(t.a);
    if (!p || !is_block_linear(p->name)) continue;
    const StepNames names(t.name);
    if (p->weight_step && t.packed)
      t.packed->step = p->weight_step->name, t.packed->step_shape = p->weight_step->shape;
    else if (p->weight_step)
      add(names.of_weight, *p->weight_step);
    if (p->input_step) add(names.of_input, *p->input_step);
  }
  layout.tensors.insert(layout.tensors.end(), steps.begin(), steps.end());
}

HubModel::HubModel(const fs::path& directory) {
  const fs::path path = directory / "config.json";
  require(fs::is_directory(directory), "checkpoint", "{} is no directory", directory.string());
  require(fs::exists(path), "checkpoint", "{} holds no config.json; it is no checkpoint", directory.string());
  const Config config{path.string(), read_json(path, int64_t{1} << 20, 16)};
  require(config.tree.is_object(), config.where, "is no object");
  spec_ = read_model(config);
  context_.sequence_len = config.whole("max_position_embeddings", 2048);
  context_.bos_id = config.token("bos_token_id");
  context_.eos_id = config.token("eos_token_id");
  tensors_ = std::make_unique<SafetensorsModel>(directory);
  // Some exporters leave the head out without saying that it is tied.
  if (!spec_.embedding_projection && !tensors_->has("lm_head.weight")) spec_.tie_embeddings = true;
  if (const json* packed = config.find("quantization_config"))
    quantization_ = read_quantization_config(config.where, *packed);
  layout_.tensors = hub_tensors(spec_);
  if (quantization_) pack_tensors(layout_.tensors, *quantization_);
  find_step_sizes();
  check_tensors();
  context_.dtype =
      tensors_->tensor(layout_.tensors[0].name).type == StoredType::f32 ? DType::f32 : DType::bf16;
  HubLayout full = hub_layout(spec_, context_, quantization());
  full.tensors = std::move(layout_.tensors);
  layout_ = std::move(full);
}

/// Of a row each, or one: the header says. Whether a step belongs there is for load() to see.
void HubModel::find_step_sizes() {
  std::vector<HubTensor> steps;
  const auto find = [&](const std::string& name, const std::string& parameter, int64_t rows) {
    if (!tensors_->has(name)) return;
    const bool by_row = tensors_->tensor(name).as_shape() == Shape{rows};
    steps.push_back({.name = name, .shape = {by_row ? rows : 1}, .a = parameter, .b = "", .b_shape = {}});
  };
  for (const HubTensor& t : layout_.tensors) {
    if (!is_block_linear(t.a)) continue;
    const StepNames stored(t.name), names(t.a);
    if (!t.packed) find(stored.of_weight, names.of_weight, t.shape[0]);
    find(stored.of_input, names.of_input, 1);
  }
  layout_.tensors.insert(layout_.tensors.end(), steps.begin(), steps.end());
}

void HubModel::check_tensors() const {
  std::set<std::string> wanted;
  std::string differences;
  int count = 0;
  const auto differ = [&](const std::string& what) {
    if (count++ < 8) differences += (differences.empty() ? "" : "; ") + what;
  };
  const auto want = [&](const std::string& name, const Shape& shape, std::optional<StoredType> type) {
    wanted.insert(name);
    if (!tensors_->has(name)) return differ(name + " is missing");
    const StoredTensor& found = tensors_->tensor(name);
    if (found.as_shape() != shape)
      differ(fmt::format("{} is {}, the config says {}", name, found.as_shape().str(), shape.str()));
    else if (type && found.type != *type)
      differ(
          fmt::format("{} is {}, the config says {}", name, osprey::name(found.type), osprey::name(*type)));
  };
  for (const HubTensor& t : layout_.tensors) {
    if (!t.packed) {
      want(t.name, t.shape, {});
      continue;
    }
    const PackedShapes s = packed_shapes(t.packed->format, t.shape[0], t.shape[1], t.name);
    const PackedNames names(t.name);
    want(names.codes, s.codes, StoredType::u8);
    want(names.scales, s.scales, stored(s.scale_dtype));
    if (s.has_tensor_scale) want(names.tensor_scale, {1}, StoredType::f32);
  }
  for (const std::string& name : tensors_->names()) {
    const bool tied_copy = spec_.tie_embeddings && name == "lm_head.weight";
    if (!wanted.contains(name) && !ignorable(name) && !tied_copy) differ(shown(name) + " is unknown");
  }
  require(count == 0, "checkpoint", "the tensors of {} do not fit its config.json: {}{}",
          tensors_->path().string(), differences, count > 8 ? fmt::format("; and {} more", count - 8) : "");
}

void HubModel::declare_packed(ParamStore& params) const {
  for (const HubTensor& t : layout_.tensors)
    if (t.packed) params.at(t.a).stored_format = t.packed->format;
}

void HubModel::load_packed(const Queue& queue, const HubTensor& t, Parameter& p) const {
  require(p.stored_format == t.packed->format, "checkpoint", "{} is not declared as a packed weight", p.name);
  Arena memory("a packed tensor", {}, packed_bytes(p.packed.format, p.packed.rows, p.packed.cols) + 256);
  const Packed host = make_packed(p.packed.format, p.packed.rows, p.packed.cols,
                                  [&](const Shape& s, DType d) { return memory.alloc(s, d); });
  const PackedNames names(t.name);
  const auto read = [&](const std::string& name, const Tensor& to) { tensors_->read(name, to); };
  read(names.codes, host.codes);
  read(names.scales, host.scales);
  if (host.tensor_scale.defined()) read(names.tensor_scale, host.tensor_scale);
  const auto impossible = find_impossible(host);
  require(!impossible, "checkpoint", "{}: {} is damaged: {}", tensors_->path().string(), t.name,
          impossible.value_or(""));
  kernels::upload(queue, p.packed.codes, host.codes.data);
  kernels::upload(queue, p.packed.scales, host.scales.data);
  if (host.tensor_scale.defined()) kernels::upload(queue, p.packed.tensor_scale, host.tensor_scale.data);
  ++p.version;
}

static bool all_finite(const Tensor& t) {
  for (int64_t i = 0; i < t.numel(); ++i)
    if (!std::isfinite(t.dtype == DType::bf16 ? to_float(t.as<bf16>()[i]) : t.as<float>()[i])) return false;
  return true;
}

void HubModel::load(const Queue& queue, ParamStore& params) const {
  for (const auto& p : params.all())
    for (const Parameter* step : {p->weight_step, p->input_step})
      require(!step || std::any_of(layout_.tensors.begin(), layout_.tensors.end(),
                                   [&](const HubTensor& t) { return t.a == step->name; }),
              "checkpoint", "{} holds no {}, which its quantization_config says was learnt",
              tensors_->path().string(), step ? step->name : "");
  for (const HubTensor& t : layout_.tensors) {
    const bool unused = is_step_size(t.a) && !params.find(t.a);  // computed without quantization
    if (unused) continue;
    Parameter& p = params.at(t.a);
    if (t.packed) {
      load_packed(queue, t, p);
      continue;
    }
    require_shape("checkpoint", p.name.c_str(), p.value, t.shape);
    write_from_host(queue, p.value, [&](const Tensor& host) {
      tensors_->read(t.name, host);
      require(!is_step_size(t.a) || all_finite(host), "checkpoint",
              "{}: {} is damaged: it is NaN or infinite", tensors_->path().string(), t.name);
    });
    ++p.version;
  }
}

ReadParameter read_values(const HubModel& hub) {
  std::map<std::string, std::string> stored;  // by parameter
  for (const HubTensor& t : hub.layout().tensors) stored[t.a] = t.name;
  return [&hub, stored](const std::string& name, int64_t begin, Tensor out) {
    const auto at = stored.find(name);
    require(at != stored.end(), "checkpoint", "{} holds no {}", hub.tensors().path().string(), name);
    hub.tensors().read_range(at->second, begin, out);
  };
}

}  // namespace osprey
