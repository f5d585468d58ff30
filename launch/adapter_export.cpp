#include "launch/adapter_export.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "framework/checkpoint/shards.h"
#include "framework/finetune/adapters.h"
#include "framework/memory/arena.h"
#include "kernels/magnitude.h"
#include "launch/recipe.h"
#include "models/hf/hub_model.h"

namespace osprey {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

/// "model.layers.0.self_attn.q_proj" of each adapted weight.
std::map<std::string, std::string> modules(const HubModel& hub, const std::vector<AdapterNames>& adapters) {
  std::map<std::string, const HubTensor*> tensors;
  for (const HubTensor& t : hub.layout().tensors)
    for (const std::string& name : t.parameters()) tensors[name] = &t;
  std::map<std::string, std::string> all;
  for (const AdapterNames& names : adapters) {
    const HubTensor& t = *tensors.at(names.weight);
    require(
        t.rule == HubTensor::Rule::copy && t.below.empty(), "export",
        "transformers holds {} together with others as {}, which PEFT adapts as one; export the merged model "
        "(--to hf)",
        names.weight, t.name);
    all[names.weight] = t.name.substr(0, t.name.rfind('.'));
  }
  return all;
}

std::string last_part(const std::string& module) { return module.substr(module.rfind('.') + 1); }

/// What says to PEFT which modules these are: the ends of their names where no other module ends so.
std::vector<std::string> target_modules(const HubModel& hub,
                                        const std::map<std::string, std::string>& adapted) {
  std::map<std::string, int64_t> ends;
  for (const auto& [weight, module] : adapted) ++ends[last_part(module)];
  for (const HubTensor& t : hub.layout().tensors)
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
  return value == std::floor(value) ? ordered_json(static_cast<int64_t>(value)) : ordered_json(value);
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
  std::vector<float> lengths(static_cast<size_t>(out));
  kernels::row_norms(Queue{}, {.norms = make_tensor(lengths.data(), {out}, DType::f32), .x = weight});
  return lengths;
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
  const std::map<std::string, std::string> module_of = modules(hub, adapters);

  AdapterExport done;
  done.base = base.empty() ? recipe.model_path : base;
  done.base_format = f.base_format;
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
  struct Part {
    const AdapterNames* adapter;
    const std::string* parameter;
  };
  std::map<std::string, Part> parts;
  std::vector<StoredTensor> tensors;
  for (const AdapterNames& names : adapters) {
    const std::string module = "base_model.model." + module_of.at(names.weight);
    const auto add = [&](const char* what, const std::string& parameter, std::vector<int64_t> shape) {
      parts[module + what] = {&names, &parameter};
      tensors.push_back({module + what, StoredType::f32, std::move(shape), 0});
    };
    add(".lora_A.weight", names.a, {names.a_shape[0], names.a_shape[1]});
    add(".lora_B.weight", names.b, {names.b_shape[0], names.b_shape[1]});
    if (!names.magnitude.empty()) add(".lora_magnitude_vector", names.magnitude, {names.b_shape[0]});
  }
  const ShardIndex shards(checkpoint);
  const ReadParameter read = read_masters(shards);
  SafetensorsWriter writer(to / "adapter_model.safetensors", tensors, {{"format", "pt"}});
  std::vector<float> values;
  for (const StoredTensor& t : writer.order()) {
    const Part& part = parts.at(t.name);
    values.resize(static_cast<size_t>(t.numel()));
    read(*part.parameter, 0, make_tensor(values.data(), {t.numel()}, DType::f32));
    if (*part.parameter == part.adapter->magnitude) {
      const std::vector<float> own = row_lengths(read_base, f, *part.adapter);
      for (size_t i = 0; i < values.size(); ++i) values[i] += own[i];
    }
    writer.write(t.name, std::as_bytes(std::span(values)));
  }
  done.file = writer.finish();
  write_file(to / "adapter_config.json", config_text(f, done.base, target_modules(hub, module_of)));
  return done;
}

}  // namespace osprey
