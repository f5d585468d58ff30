#include "models/hf/hub_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "framework/eval/round_to_nearest.h"
#include "framework/files/json.h"
#include "framework/memory/staging.h"
#include "framework/quant/step_sizes.h"
#include "kernels/core/check.h"
#include "models/hf/family.h"

namespace osprey {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

template <class T>
ordered_json or_null(const std::optional<T>& v) {
  return v ? ordered_json(*v) : ordered_json(nullptr);
}

/// Marks the tensors whose parameters a group packs.
void pack_tensors(std::vector<HubTensor>& tensors, const QuantizationConfig& quantization) {
  for (HubTensor& t : tensors)
    if (const QuantGroupSpec* group = quantization.packs(t.a)) {
      require(
          t.rule == HubTensor::Rule::copy && t.below.empty(), "quantize",
          "{} holds {} transposed or joined with others, as files of the gpt2 type do, and packed files hold "
          "whole matrices by rows; measure this model quantized with osprey eval --quantize instead, or pack "
          "one of another type, such as llama",
          t.name, t.a);
      t.packed = {.format = group->weights->block_format(),
                  .scale = group->weights->scale,
                  .rotation = forward_rotation(*group, quantization.seed)};
    }
}

/// One token by itself, several as a list, none as null.
ordered_json stop_json(const HubContext& context) {
  if (context.stop_ids.size() > 1) return context.stop_ids;
  if (context.stop_ids.size() == 1) return context.stop_ids[0];
  return or_null(context.eos_id);
}

const char* torch_name(StoredType type) {
  return type == StoredType::f32 ? "float32" : type == StoredType::f16 ? "float16" : "bfloat16";
}

const HubFamily& family_of_type(const HubConfig& config) {
  const std::string type = config.word("model_type", "");
  std::string known;
  for (const HubFamily* family : hub_families())
    for (const std::string& t : family->types) {
      if (t == type) return *family;
      known += (known.empty() ? "" : ", ") + t;
    }
  fail(config.where(), "model_type '{}' is not one that Osprey computes ({})", shown(type), known);
}

/// The stop tokens of generation_config.json, then those of config.json that it leaves out.
std::vector<int32_t> stop_tokens(const fs::path& directory, const HubConfig& config) {
  std::vector<int32_t> stops;
  const auto add = [&](const HubConfig& c) {
    for (const int32_t token : c.tokens("eos_token_id"))
      if (std::find(stops.begin(), stops.end(), token) == stops.end()) stops.push_back(token);
  };
  const fs::path generation = directory / "generation_config.json";
  if (fs::exists(generation)) add({generation.string(), read_json(generation, int64_t{1} << 20, 16)});
  add(config);
  return stops;
}

std::optional<int32_t> first(const std::vector<int32_t>& tokens) {
  return tokens.empty() ? std::nullopt : std::optional(tokens[0]);
}

/// Weights that only Python can read, by running what they say.
void refuse_pickles(const fs::path& directory) {
  if (has_weights(directory)) return;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string ending = entry.path().extension().string();
    require(
        ending != ".bin" && ending != ".pt" && ending != ".pth" && ending != ".ckpt", "checkpoint",
        "the weights of {} are pickled ({}); reading them would run the code in them, which Osprey does not "
        "do. Write them as safetensors where you trust the file: "
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW, safe_serialization=True)",
        directory.string(), shown(entry.path().filename().string()));
  }
}

struct OpenConfig {
  HubConfig config;
  const HubFamily& family;
  ModelSpec spec;
};

OpenConfig open_config(const fs::path& directory) {
  const fs::path path = directory / "config.json";
  require(fs::is_directory(directory), "checkpoint", "{} is no directory", directory.string());
  require(fs::exists(path), "checkpoint", "{} holds no config.json; it is no checkpoint", directory.string());
  HubConfig config(path.string(), read_json(path, int64_t{1} << 20, 16));
  const HubFamily& family = family_of_type(config);
  ModelSpec spec = family.read(config);
  // The rules of the recipe hold for a config, too (heads divide the width, ...).
  read_spec<ModelSpec>(dump_spec(spec), config.where());
  return {std::move(config), family, std::move(spec)};
}

}  // namespace

bool has_weights(const fs::path& directory) {
  return fs::exists(directory / "model.safetensors") ||
         fs::exists(directory / "model.safetensors.index.json");
}

ModelSpec read_model_config(const fs::path& directory) {
  OpenConfig open = open_config(directory);
  refuse_pickles(directory);
  read_packing(directory);  // refuses what only others unpack
  return std::move(open.spec);
}

std::vector<const HubFamily*> hub_families() { return {&llama_hub, &gpt2_hub, &opt_hub}; }

const HubFamily& hub_family(const ModelSpec& spec) {
  if (spec.family == ModelSpec::Family::llama) return llama_hub;
  return spec.activation == Activation::gelu ? gpt2_hub : opt_hub;
}

std::optional<std::string> beyond_transformers(const ModelSpec& spec) {
  return hub_family(spec).beyond(spec);
}

HubLayout hub_layout(const ModelSpec& spec, const HubContext& context,
                     const QuantizationConfig* quantization) {
  const HubFamily& family = hub_family(spec);
  ordered_json generation = {{"do_sample", true}, {"eos_token_id", stop_json(context)}};
  if (context.bos_id) generation["bos_token_id"] = *context.bos_id;
  if (context.pad_id) generation["pad_token_id"] = *context.pad_id;
  ordered_json config = family.config(spec, context);
  config["bos_token_id"] = or_null(context.bos_id);
  config["eos_token_id"] = stop_json(context);
  if (context.pad_id) config["pad_token_id"] = *context.pad_id;
  config["torch_dtype"] = torch_name(context.file_type());
  config["use_cache"] = true;
  std::vector<HubTensor> tensors = family.tensors(spec);
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

std::optional<QuantizationConfig> read_packing(const fs::path& directory) {
  const fs::path path = directory / "config.json";
  const HubConfig config(path.string(), read_json(path, int64_t{1} << 20, 16));
  const auto* packed = config.find("quantization_config");
  return packed ? std::optional(read_quantization_config(config.where(), *packed)) : std::nullopt;
}

HubModel::HubModel(const fs::path& directory) {
  const auto [config, family, spec] = open_config(directory);
  spec_ = spec;
  context_.sequence_len = spec_.family == ModelSpec::Family::gpt
                              ? spec_.max_positions
                              : config.whole("max_position_embeddings", 2048);
  context_.bos_id = first(config.tokens("bos_token_id"));
  context_.eos_id = first(config.tokens("eos_token_id"));
  context_.pad_id = first(config.tokens("pad_token_id"));
  context_.stop_ids = stop_tokens(directory, config);
  refuse_pickles(directory);
  tensors_ = std::make_unique<SafetensorsModel>(directory);
  // Some exporters leave the head out without saying that it is tied.
  if (!tensors_->has(family.head)) spec_.tie_embeddings = true;
  if (const auto* packed = config.find("quantization_config"))
    quantization_ = read_quantization_config(config.where(), *packed);
  layout_.tensors = family.tensors(spec_);
  take_prefix_of_files(family);
  if (quantization_) pack_tensors(layout_.tensors, *quantization_);
  find_step_sizes();
  check_tensors(family);
  const StoredType type = tensors_->tensor(layout_.tensors[0].name).type;
  context_.dtype = type == StoredType::f32 ? DType::f32 : DType::bf16;
  if (type == StoredType::f16) context_.stored_as = type;
  const std::vector<HubTensor> named = std::move(layout_.tensors);
  layout_ = hub_layout(spec_, context_, quantization());
  layout_.tensors = named;
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

/// Exporters write names with the family's prefix, with a part of it, or without.
void HubModel::take_prefix_of_files(const HubFamily& family) {
  const std::string ours = family.prefixes.front(), probe = layout_.tensors[0].name.substr(ours.size());
  for (const std::string& prefix : family.prefixes) {
    if (!tensors_->has(prefix + probe)) continue;
    for (HubTensor& t : layout_.tensors)
      if (t.name.starts_with(ours)) t.name = prefix + t.name.substr(ours.size());
    return;
  }
}

void HubModel::check_tensors(const HubFamily& family) const {
  std::set<std::string> wanted;
  std::map<std::string, std::string> differences;  // by tensor
  const auto want = [&](const std::string& name, const Shape& shape, std::optional<StoredType> type) {
    wanted.insert(name);
    if (!tensors_->has(name)) {
      differences[name] = "is missing";
      return;
    }
    const StoredTensor& found = tensors_->tensor(name);
    if (found.as_shape() != shape)
      differences[name] = fmt::format("is {}, the config says {}", found.as_shape().str(), shape.str());
    else if (type && found.type != *type)
      differences[name] =
          fmt::format("is {}, the config says {}", osprey::name(found.type), osprey::name(*type));
    else if (!type && found.type != StoredType::f32 && found.type != StoredType::bf16 &&
             found.type != StoredType::f16)
      differences[name] = fmt::format("is {}; weights are F32, F16 or BF16", osprey::name(found.type));
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
  const auto ignored = [&](const std::string& name) {
    if (spec_.tie_embeddings && name == family.head) return true;  // a copy of the embedding
    return std::any_of(family.ignored.begin(), family.ignored.end(),
                       [&](const std::string& ending) { return name.ends_with(ending); });
  };
  for (const std::string& name : tensors_->names())
    if (!wanted.contains(name) && !ignored(name)) differences[name] = "is unknown";
  std::string lines;
  for (const auto& [name, difference] : differences)
    lines += fmt::format("\n  {} {}", shown(name), difference);
  require(differences.empty(), "checkpoint", "{} of the tensors of {} do not fit its config.json:{}",
          differences.size(), tensors_->path().string(), lines);
}

void HubModel::declare_packed(ParamStore& params) const {
  for (const HubTensor& t : layout_.tensors)
    if (t.packed) params.at(t.a).stored_format = t.packed->format;
}

namespace {

/// A packed matrix in host memory of its own.
struct HostPacked {
  HostPacked(const BlockFormat& format, const Shape& shape)
      : memory("a packed tensor", {}, packed_bytes(format, shape[0], shape[1]) + 256),
        values(make_packed(format, shape[0], shape[1],
                           [&](const Shape& s, DType d) { return memory.alloc(s, d); })) {}
  void upload(const Queue& queue, Parameter& p) const {
    kernels::upload(queue, p.packed.codes, values.codes.data);
    kernels::upload(queue, p.packed.scales, values.scales.data);
    if (values.tensor_scale.defined())
      kernels::upload(queue, p.packed.tensor_scale, values.tensor_scale.data);
    ++p.version;
  }
  Arena memory;
  Packed values;
};

}  // namespace

void HubModel::read_packed(const HubTensor& t, const Packed& host) const {
  const PackedNames names(t.name);
  tensors_->read(names.codes, host.codes);
  tensors_->read(names.scales, host.scales);
  if (host.tensor_scale.defined()) tensors_->read(names.tensor_scale, host.tensor_scale);
  const auto impossible = find_impossible(host);
  require(!impossible, "checkpoint", "{}: {} is damaged: {}", tensors_->path().string(), t.name,
          impossible.value_or(""));
}

void HubModel::load_packed(const Queue& queue, const HubTensor& t, Parameter& p) const {
  require(p.stored_format == t.packed->format, "checkpoint", "{} is not declared as a packed weight", p.name);
  const HostPacked host(t.packed->format, t.shape);
  read_packed(t, host.values);
  host.upload(queue, p);
}

void HubModel::pack(const Queue& queue, const HubTensor& t, Parameter& p) const {
  const HostPacked host(*p.stored_format, p.shape);
  std::vector<float> values(static_cast<size_t>(p.shape.numel()));
  const Tensor x = make_tensor(values.data(), p.shape, DType::f32);
  read_hub_parameter(*tensors_, t, p.name, 0, x);
  kernels::quantize(host_queue(queue), {.y = host.values, .x = x, .rule = p.scheme->spec->weights->scale});
  const auto impossible = find_impossible(host.values);
  require(!impossible, "checkpoint", "{}: {} cannot be packed, it holds NaN or Inf: {}",
          tensors_->path().string(), t.name, impossible.value_or(""));
  host.upload(queue, p);
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
    if (t.packed) {
      load_packed(queue, t, params.at(t.a));
      continue;
    }
    for (const std::string& name : t.parameters()) {
      const bool unused = is_step_size(name) && !params.find(name);  // computed without quantization
      if (unused) continue;
      Parameter& p = params.at(name);
      if (p.stored_format) {
        pack(queue, t, p);
        continue;
      }
      require_shape("checkpoint", p.name.c_str(), p.value, t.parameter_shape());
      write_from_host(queue, p.value, [&](const Tensor& host) {
        read_hub_parameter(*tensors_, t, name, 0, host);
        require(!is_step_size(name) || all_finite(host), "checkpoint",
                "{}: {} is damaged: it is NaN or infinite", tensors_->path().string(), t.name);
      });
      ++p.version;
    }
  }
}

ReadParameter read_values(const HubModel& hub) {
  std::map<std::string, const HubTensor*> stored;  // by parameter
  for (const HubTensor& t : hub.layout().tensors)
    for (const std::string& name : t.parameters()) stored[name] = &t;
  return [&hub, stored](const std::string& name, int64_t begin, Tensor out) {
    const auto at = stored.find(name);
    require(at != stored.end(), "checkpoint", "{} holds no {}", hub.tensors().path().string(), name);
    const HubTensor& t = *at->second;
    if (!t.packed) return read_hub_parameter(hub.tensors(), t, name, begin, out);
    const int64_t cols = t.shape[1], rows = out.numel() / cols;
    require(begin % cols == 0 && out.numel() % cols == 0, "checkpoint",
            "{} is packed and read in whole rows, got [{}, {})", name, begin, begin + out.numel());
    const HostPacked host(t.packed->format, t.shape);
    hub.read_packed(t, host.values);
    kernels::dequantize(Queue{}, {.y = out.view({rows, cols}),
                                  .x = host.values.row_range(begin / cols, begin / cols + rows)});
  };
}

}  // namespace osprey
