#include "launch/adapter_files.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "framework/checkpoint/shards.h"
#include "framework/files/json.h"
#include "framework/memory/arena.h"
#include "framework/memory/staging.h"
#include "kernels/magnitude.h"
#include "kernels/pointwise.h"
#include "models/hf/hub_model.h"

namespace osprey {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

constexpr const char *weights_file = "adapter_model.safetensors", *config_file = "adapter_config.json";

/// The tensors of a model as transformers has them.
std::vector<HubTensor> tensors_of(const ModelSpec& spec) {
  return hub_layout(spec, {.sequence_len = 1, .bos_id = {}, .eos_id = {}}).tensors;
}

/// "model.layers.0.self_attn.q_proj" of each adapted weight.
std::map<std::string, std::string> modules(const std::vector<HubTensor>& tensors,
                                           const std::vector<AdapterNames>& adapters) {
  std::map<std::string, const HubTensor*> by_parameter;
  for (const HubTensor& t : tensors)
    for (const std::string& name : t.parameters()) by_parameter[name] = &t;
  std::map<std::string, std::string> all;
  for (const AdapterNames& names : adapters) {
    const HubTensor& t = *by_parameter.at(names.weight);
    require(
        t.rule == HubTensor::Rule::copy && t.below.empty(), "adapter",
        "transformers holds {} transposed or together with others as {}, which PEFT adapts as it lies there, so these "
        "adapters have no files; osprey export --to hf writes the merged model",
        names.weight, t.name);
    all[names.weight] = t.name.substr(0, t.name.rfind('.'));
  }
  return all;
}

/// A tensor of the file, and the parameter that it is.
struct AdapterTensor {
  const AdapterNames* adapter;
  const std::string* parameter;
  Shape shape;
};

/// All tensors of the adapters by their names in the file. Aliasing: `adapters`.
std::map<std::string, AdapterTensor> adapter_tensors(const std::vector<HubTensor>& tensors,
                                                     const std::vector<AdapterNames>& adapters) {
  std::map<std::string, AdapterTensor> all;
  const std::map<std::string, std::string> module_of = modules(tensors, adapters);
  for (const AdapterNames& names : adapters) {
    const std::string module = "base_model.model." + module_of.at(names.weight);
    all[module + ".lora_A.weight"] = {&names, &names.a, names.a_shape};
    all[module + ".lora_B.weight"] = {&names, &names.b, names.b_shape};
    if (!names.magnitude.empty())
      all[module + ".lora_magnitude_vector"] = {&names, &names.magnitude, {names.b_shape[0]}};
  }
  return all;
}

std::string last_part(const std::string& module) { return module.substr(module.rfind('.') + 1); }

/// What says to PEFT which modules these are: the ends of their names where no other module ends so.
std::vector<std::string> target_modules(const std::vector<HubTensor>& tensors,
                                        const std::map<std::string, std::string>& adapted) {
  std::map<std::string, int64_t> ends;
  for (const auto& [weight, module] : adapted) ++ends[last_part(module)];
  for (const HubTensor& t : tensors)
    if (t.name.ends_with(".weight"))
      if (const auto end = ends.find(last_part(t.name.substr(0, t.name.rfind('.')))); end != ends.end())
        --end->second;
  std::vector<std::string> targets;
  const bool all = std::all_of(ends.begin(), ends.end(), [](const auto& end) { return end.second == 0; });
  if (all)
    for (const auto& [end, left] : ends) targets.push_back(end);
  else
    for (const auto& [weight, module] : adapted) targets.push_back(module);
  return targets;
}

ordered_json number(double value) {
  return value == std::floor(value) && value < 1e15 ? ordered_json(static_cast<int64_t>(value))
                                                    : ordered_json(value);
}

std::string config_text(const FinetuneSpec& f, const std::string& base,
                        const std::vector<std::string>& targets) {
  const ordered_json config = {{"peft_type", "LORA"},
                               {"task_type", "CAUSAL_LM"},
                               {"base_model_name_or_path", base},
                               {"r", f.rank},
                               {"lora_alpha", number(f.alpha)},
                               {"lora_dropout", 0.0},
                               {"use_rslora", f.rank_stabilized},
                               {"use_dora", f.method == FinetuneSpec::Method::dora},
                               {"target_modules", targets},
                               {"bias", "none"},
                               {"fan_in_fan_out", false},
                               {"init_lora_weights", true},
                               {"modules_to_save", nullptr},
                               {"rank_pattern", ordered_json::object()},
                               {"alpha_pattern", ordered_json::object()},
                               {"inference_mode", true}};
  return config.dump(2) + "\n";
}

/// In which format a directory holds weights packed; empty where it holds none so, or is not there.
std::string packed_format(const fs::path& directory) {
  if (!fs::exists(directory / "config.json")) return "";
  if (const auto packing = read_packing(directory))
    for (const QuantGroupSpec& g : packing->groups)
      if (g.weights) return g.weights->format;
  return "";
}

std::vector<float> lengths_of(const Tensor& weight) {
  std::vector<float> lengths(static_cast<size_t>(weight.rows()));
  kernels::row_norms(Queue{},
                     {.norms = make_tensor(lengths.data(), {weight.rows()}, DType::f32), .x = weight});
  return lengths;
}

/// The lengths of the rows of a weight as the run had it, in `base`.
std::vector<float> row_lengths(const ReadParameter& base, const FinetuneSpec& f, const AdapterNames& names) {
  const int64_t out = names.b_shape[0], in = names.a_shape[1];
  Arena memory("a weight", {}, out * in * 8 + 4096);
  const Tensor weight = memory.alloc({out, in}, DType::f32);
  base(names.weight, 0, weight);
  if (!f.base_format.empty()) {
    const Packed packed = make_packed(block_format(f.base_format), out, in,
                                      [&](const Shape& s, DType d) { return memory.alloc(s, d); });
    kernels::quantize(Queue{}, {.y = packed, .x = weight});
    kernels::dequantize(Queue{}, {.y = weight, .x = packed});
  }
  return lengths_of(weight);
}

/// The merged rows of the checkpoint are as long as the adapter says, up to their rounding, if `base` is the
/// model that it adapts.
void require_lengths(const std::vector<float>& lengths, const ReadParameter& merged,
                     const AdapterNames& names, const std::string& base) {
  const int64_t out = names.b_shape[0], in = names.a_shape[1];
  std::vector<float> rows(static_cast<size_t>(out * in));
  const Tensor weight = make_tensor(rows.data(), {out, in}, DType::f32);
  merged(names.weight, 0, weight);
  const std::vector<float> found = lengths_of(weight);
  const float longest = *std::max_element(found.begin(), found.end());
  for (size_t i = 0; i < found.size(); ++i)
    require(std::abs(std::abs(lengths[i]) - found[i]) <= 0.02f * longest, "export",
            "{} is not the model that the run started from: row {} of {} would be {} long, and is {} in the "
            "checkpoint; name the right directory with --base",
            base, i, names.weight, std::abs(lengths[i]), found[i]);
}

}  // namespace

AdapterExport export_adapters(const fs::path& checkpoint, const std::string& base, const fs::path& to) {
  const char* cure = "give a checkpoint of a lora or dora run";
  require(fs::exists(checkpoint / "recipe.yaml") && fs::exists(checkpoint / shard_name(0)), "export",
          "{} holds no adapters, only a model; {}", checkpoint.string(), cure);
  const Recipe recipe = read_recipe((checkpoint / "recipe.yaml").string());
  const FinetuneSpec& f = recipe.finetune;
  require(f.adapts(), "export", "{} was trained without adapters; {}, or --to hf", checkpoint.string(), cure);
  const HubModel hub(checkpoint);
  const auto beyond = beyond_transformers(hub.spec());
  require(!beyond, "export", "no architecture of transformers computes {}, so PEFT cannot adapt it",
          beyond.value_or(""));
  ParamStore params;
  make_model(hub.spec(), std::max<int64_t>(1, hub.context().sequence_len))->declare(params);
  const std::vector<AdapterNames> adapters = declare_adapters(f, params);
  const std::vector<HubTensor> model = tensors_of(hub.spec());
  const std::map<std::string, AdapterTensor> parts = adapter_tensors(model, adapters);

  AdapterExport done;
  done.base = base.empty() ? recipe.model_path : base;
  done.base_format = f.base_format.empty() ? packed_format(done.base) : f.base_format;
  done.matrices = static_cast<int64_t>(adapters.size());
  std::unique_ptr<HubModel> started_from;
  ReadParameter read_base;
  if (f.method == FinetuneSpec::Method::dora) {
    require(
        fs::is_directory(done.base), "export",
        "the lengths of dora are those of {}, which is not there; name the directory that the run started "
        "from with --base",
        done.base);
    started_from = std::make_unique<HubModel>(done.base);
    read_base = read_values(*started_from);
  }
  std::vector<StoredTensor> tensors;
  for (const auto& [name, part] : parts) {
    std::vector<int64_t> shape = {part.shape[0]};
    if (part.shape.rank == 2) shape.push_back(part.shape[1]);
    tensors.push_back({name, StoredType::f32, std::move(shape), 0});
  }
  const ShardIndex shards(checkpoint);
  const ReadParameter read = read_masters(shards), read_merged = read_values(hub);
  SafetensorsWriter writer(to / weights_file, tensors, {{"format", "pt"}});
  std::vector<float> values;
  for (const StoredTensor& t : writer.order()) {
    const AdapterTensor& part = parts.at(t.name);
    values.resize(static_cast<size_t>(t.numel()));
    read(*part.parameter, 0, make_tensor(values.data(), {t.numel()}, DType::f32));
    if (*part.parameter == part.adapter->magnitude) {
      const std::vector<float> own = row_lengths(read_base, f, *part.adapter);
      for (size_t i = 0; i < values.size(); ++i) values[i] += own[i];
      require_lengths(values, read_merged, *part.adapter, done.base);
    }
    writer.write(t.name, std::as_bytes(std::span(values)));
  }
  done.file = writer.finish();
  write_file(to / config_file, config_text(f, done.base, target_modules(model, modules(model, adapters))));
  return done;
}

AdapterConfig parse_adapter_config(const std::string& where, std::string_view text) {
  const nlohmann::json tree = parse_json(where, text, 16);
  require(tree.is_object() && tree.value("peft_type", nlohmann::json()) == "LORA", where,
          "is no configuration of LoRA: its peft_type is not \"LORA\"");
  const auto find = [&](const char* key) { return tree.value(key, nlohmann::json()); };
  const auto yes = [&](const char* key) {
    const nlohmann::json v = find(key);
    require(v.is_null() || v.is_boolean(), where, "{} must be true or false, found {}", key, shown(v.dump()));
    return v.is_boolean() && v.get<bool>();
  };
  AdapterConfig config;
  const nlohmann::json rank = find("r"), alpha = find("lora_alpha");
  require(rank.is_number_unsigned() && rank.get<uint64_t>() >= 1 && rank.get<uint64_t>() <= (1u << 20), where,
          "r must be a whole number from 1 on, found {}", shown(rank.dump()));
  require(alpha.is_number() && std::isfinite(alpha.get<double>()), where,
          "lora_alpha must be a number, found {}", shown(alpha.dump()));
  config.rank = rank.get<int64_t>();
  config.alpha = alpha.get<double>();
  config.rank_stabilized = yes("use_rslora");
  config.lengths = yes("use_dora");
  for (const char* key : {"fan_in_fan_out", "lora_bias", "use_qalora"})
    require(!yes(key), where, "{} is true, which Osprey does not compute", key);
  for (const char* key : {"rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication",
                          "trainable_token_indices", "alora_invocation_tokens"})
    require(find(key).empty(), where,
            "{} is {}; Osprey has one rank and one alpha for all, and adapts matrices of "
            "layers alone",
            key, shown(find(key).dump()));
  const nlohmann::json dropout = find("lora_dropout");
  require(dropout.is_null() || (dropout.is_number() && dropout.get<double>() == 0), where,
          "lora_dropout is {}, and Osprey trains without dropout; set it to 0 to go on so",
          shown(dropout.dump()));
  const nlohmann::json bias = find("bias"), init = find("init_lora_weights");
  require(bias.is_null() || bias == "none", where, "bias is {}; biases do not train beside adapters",
          shown(bias.dump()));
  require(init.is_null() || init.is_boolean() || init == "gaussian" || init == "eva" || init == "orthogonal",
          where, "init_lora_weights is {}, which changes the model's own weights as well",
          shown(init.dump()));
  return config;
}

void check_adapter_files(const FinetuneSpec& f) {
  const fs::path from = f.adapter, config_path = from / config_file;
  require(fs::exists(config_path) && fs::exists(from / weights_file), "finetune.adapter",
          "{} holds no {} with its {}; name a directory that PEFT or osprey export --to peft wrote",
          from.string(), weights_file, config_file);
  const AdapterConfig config = parse_adapter_config(config_path.string(), read_file(config_path, 1 << 20));
  const auto same = [&](const char* key, const auto& theirs, const auto& ours) {
    require(theirs == ours, config_path.string(), "its adapters are for {}: {}, the recipe says {}", key,
            theirs, ours);
  };
  same("finetune.rank", config.rank, f.rank);
  same("finetune.alpha", config.alpha, f.alpha);
  same("finetune.rank_stabilized", config.rank_stabilized, f.rank_stabilized);
  same("finetune.method", std::string(config.lengths ? "dora" : "lora"),
       std::string(f.method == FinetuneSpec::Method::dora ? "dora" : "lora"));
}

void load_adapters(const Queue& queue, const Recipe& recipe, const std::vector<AdapterNames>& adapters,
                   ParamStore& params, Updater& updater) {
  const FinetuneSpec& f = recipe.finetune;
  const fs::path from = f.adapter;
  check_adapter_files(f);
  const SafetensorsFile file(from / weights_file);
  const std::map<std::string, AdapterTensor> parts = adapter_tensors(tensors_of(recipe.model), adapters);
  for (const StoredTensor& t : file.tensors())
    require(parts.contains(t.name), file.path().string(),
            "{} adapts nothing that finetune.targets matches; set targets to what these adapters are for",
            shown(t.name));
  const HubModel base(recipe.model_path);
  const ReadParameter read_base = read_values(base);
  for (const auto& [name, part] : parts) {
    const StoredTensor* stored = file.find(name);
    require(stored, file.path().string(), "has no {}, which finetune.targets wants", name);
    require(stored->as_shape() == part.shape, file.path().string(), "{} is {}, the recipe says {}", name,
            stored->as_shape().str(), part.shape.str());
    std::vector<float> values(static_cast<size_t>(part.shape.numel()));
    const Tensor all = make_tensor(values.data(), part.shape, DType::f32);
    file.read(*stored, 0, all.view({part.shape.numel()}));
    require(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }),
            file.path().string(), "{} holds NaN or Inf", name);
    if (*part.parameter == part.adapter->magnitude) {
      const std::vector<float> own = row_lengths(read_base, f, *part.adapter);
      for (size_t i = 0; i < values.size(); ++i) values[i] -= own[i];
    }
    Parameter& p = params.at(*part.parameter);
    write_from_host(queue, p.value,
                    [&](const Tensor& host) { kernels::copy(host_queue(queue), {.y = host, .x = all}); });
    ++p.version;
    if (recipe.train.masters == Masters::kept) updater.assign(p, values);
  }
}

}  // namespace osprey
