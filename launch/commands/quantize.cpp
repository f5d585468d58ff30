#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "framework/checkpoint/directory.h"
#include "framework/config/reader.h"
#include "launch/commands/command.h"
#include "launch/loaded_model.h"
#include "launch/recipe.h"
#include "models/hf/hub_model.h"

namespace osprey {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string checkpoint, directory, method = "rtn";
  std::optional<std::string> preset, format, scale, activations, match;
  std::optional<int64_t> rotation;

  /// Does the command line say how, or the checkpoint's own recipe?
  bool given() const { return preset || format; }
};

/// One group for all layers, as the command line says. The rules of a recipe hold: JSON is YAML.
QuantGroupSpec given_group(const Options& o) {
  nlohmann::ordered_json group = nlohmann::ordered_json::object();
  if (o.match) group["match"] = *o.match;
  if (o.preset) group["preset"] = *o.preset;
  if (o.format) group["weights"]["format"] = *o.format;
  if (o.format && o.scale) group["weights"]["scale"] = *o.scale;
  if (o.activations) group["activations"]["format"] = *o.activations;
  if (o.activations && o.scale) group["activations"]["scale"] = *o.scale;
  if (o.rotation) group["rotation"] = *o.rotation;
  return read_spec<QuantGroupSpec>(group.dump(), "quantize");
}

std::string alternatives(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ",") + word;
  return words.size() == 1 ? list : "{" + list + "}";
}

/// Patterns for weights of blocks: "layers.{0,3,4}.{attn.k,attn.q,attn.v}.weight", one for all names of the
/// same layers, so that weights that share an input stay together; or several where there are many layers,
/// since a pattern may have at most 1000 characters.
std::vector<std::string> patterns_of(const std::vector<const Parameter*>& weights) {
  constexpr size_t most_layers = 100;
  const std::string tail = ".weight";
  std::map<std::string, std::vector<std::string>> layers;  // by what stands between "layers.3." and the tail
  for (const Parameter* p : weights) {
    const size_t head = fmt::format("layers.{}.", p->layer).size();
    layers[p->name.substr(head, p->name.size() - head - tail.size())].push_back(std::to_string(p->layer));
  }
  std::map<std::vector<std::string>, std::vector<std::string>> names;  // by their layers
  for (const auto& [name, all] : layers) names[all].push_back(name);
  std::vector<std::string> patterns;
  for (const auto& [all, of] : names)
    for (size_t i = 0; i < all.size(); i += most_layers) {
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(i);
      const auto count = static_cast<std::ptrdiff_t>(std::min(all.size() - i, most_layers));
      patterns.push_back("layers." + alternatives({begin, begin + count}) + "." + alternatives(of) + tail);
    }
  return patterns;
}

/// A group whose rotations were measured, as several: of layers that forward rotates, and of layers that it
/// does not. `takes` says which weights are the group's.
std::vector<QuantGroupSpec> as_measured(const QuantGroupSpec& group, const ParamStore& params,
                                        const std::vector<LayerPatterns>& patterns,
                                        const std::function<bool(const Parameter&)>& takes) {
  std::vector<const Parameter*> rotated, others;
  for (const auto& p : params.all()) {
    if (!takes(*p)) continue;
    // A calibration names the first of the weights that share an input.
    const std::string& first = p->first_of_input ? p->first_of_input->name : p->name;
    const auto found = std::find_if(patterns.begin(), patterns.end(),
                                    [&](const LayerPatterns& l) { return l.weight == first; });
    const bool rotates = found != patterns.end() && found->decided && found->rotated.forward;
    (rotates ? rotated : others).push_back(p.get());
  }
  std::vector<QuantGroupSpec> groups;
  const auto add = [&](const std::vector<const Parameter*>& weights, int64_t rotation) {
    for (const std::string& pattern : patterns_of(weights)) {
      groups.push_back(group);
      groups.back().match = pattern;
      groups.back().rotation = rotation;
    }
  };
  add(rotated, group.rotation);
  add(others, 0);
  return groups;
}

/// The groups that a run ended with.
std::vector<QuantGroupSpec> trained_groups(const fs::path& checkpoint, const ParamStore& params) {
  const fs::path path = checkpoint / "recipe.yaml";
  const char* cure = "give --format or --preset";
  require(fs::exists(path), "quantize", "{} has no recipe.yaml that says how it was trained; {}",
          checkpoint.string(), cure);
  const Recipe recipe = read_recipe(path.string());
  require(!recipe.quant.empty(), "quantize", "{} was trained without a quant section; {}",
          checkpoint.string(), cure);
  const CheckpointState state = read_checkpoint_state(checkpoint);
  std::vector<QuantGroupSpec> groups;
  for (const QuantGroupSpec& g : recipe.quant) {
    const QuantSpan span = span_of(g, recipe.train.global_batch_tokens);
    require(span.quantizes() + std::max<int64_t>(span.anneal, 1) <= state.step && state.step <= span.end,
            "quantize", "the group '{}' of {} does not quantize all its layers in step {}, the last; {}",
            g.match, path.string(), state.step, cure);
    if (!g.measured()) {
      groups.push_back(g);
      continue;
    }
    const auto takes = [&](const Parameter& p) { return first_match(recipe.quant, p.name) == &g; };
    for (QuantGroupSpec& part : as_measured(g, params, state.patterns, takes))
      groups.push_back(std::move(part));
  }
  return groups;
}

std::string summary(const QuantGroupSpec& g) {
  return fmt::format("{} weights, {} activations{}", g.weights ? g.weights->format : "plain",
                     g.activations ? g.activations->format : "plain",
                     g.rotation > 0 ? fmt::format(", rotated by {}", g.rotation) : "");
}

int64_t file_bytes(const fs::path& directory) {
  int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().extension() == ".safetensors") bytes += static_cast<int64_t>(entry.file_size());
  return bytes;
}

void run(const Options& o) {
  require(!(o.preset && o.format), "quantize", "--preset says what --format does; give one of them");
  for (const auto& [word, there] : {std::pair{"--scale", o.scale.has_value()},
                                    {"--activations", o.activations.has_value()},
                                    {"--match", o.match.has_value()},
                                    {"--rotation", o.rotation.has_value()}})
    require(!there || o.given(), "quantize", "{} needs --format or --preset", word);
  require(!o.scale || o.format, "quantize", "--scale needs --format");
  require(
      o.scale != "lsq" && o.preset != "lsq", "quantize",
      "the steps of lsq are learnt in training; pack a run that learnt them, without --scale or --preset");
  const fs::path from = checkpoint_of(o.checkpoint), to = o.directory;
  const HubModel hub(from);
  require(!hub.quantization(), "quantize",
          "the weights of {} are packed already; take the checkpoint that they were made of", from.string());
  require_new_directory("quantize", from, to);
  ParamStore params;
  make_model(hub.spec(), std::max<int64_t>(1, hub.context().sequence_len))->declare(params);
  const std::vector<QuantGroupSpec> groups =
      o.given() ? std::vector<QuantGroupSpec>{given_group(o)} : trained_groups(from, params);
  require(!o.given() || !groups[0].measured(), "quantize",
          "rotations that are measured are measured in training; choose another preset, or give --format");
  // Weights that were trained with a rotation are good in that one: its signs follow from the run's seed.
  const int64_t seed = fs::exists(from / "state.yaml") ? read_checkpoint_state(from).seed : 0;
  const QuantizationConfig config = for_inference(groups, static_cast<uint64_t>(seed));
  const QuantSchemes fits(config.groups, params, config.seed);  // do patterns and widths fit the model?
  if (fs::exists(from / "manifest.json")) verify_files(from, read_manifest(from));

  PartialDirectory partial(to);
  HubLayout layout = hub_layout(hub.spec(), hub.context(), &config);
  add_step_sizes(layout, params);
  int64_t packed = 0;
  for (const HubTensor& t : layout.tensors) packed += t.packed ? 1 : 0;
  require(packed > 0, "quantize", "no group quantizes weights, so nothing would be packed");
  const Queue queue{.device = {}, .threads = CheckpointOptions().threads};
  const FileRecord file = write_hub_tensors(queue, partial.path() / "model.safetensors", layout,
                                            read_values(hub), hub.context().file_type());
  write_hub_texts(partial.path(), layout, from);
  // Says where validation data are; osprey eval asks for it.
  if (fs::exists(from / "recipe.yaml"))
    copy_file_durably(from / "recipe.yaml", partial.path() / "recipe.yaml");
  partial.publish(PartialDirectory::Manifest::left_out);
  for (const QuantGroupSpec& g : config.groups) fmt::print("{}: {}\n", g.match, summary(g));
  fmt::print("{}: {} of {} tensors packed, {:.2f} MB where {} has {:.2f}\n", to.string(), packed,
             layout.tensors.size(), static_cast<double>(file.size_bytes) / 1e6, from.string(),
             static_cast<double>(file_bytes(from)) / 1e6);
}

}  // namespace

void add_quantize(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "quantize",
      "pack a checkpoint's linear layers into few bits; osprey eval and generate run what it writes");
  command
      ->add_option(
          "checkpoint", o->checkpoint,
          "a checkpoint, a run (its newest checkpoint), or a Hugging Face directory of a family that Osprey "
          "knows")
      ->required();
  command->add_option("directory", o->directory, "what to write; must not exist, or be empty")->required();
  command->add_option(
      "--format", o->format,
      "of the weights, as osprey fields quant lists them (mxfp4, nvfp4, mxint8, int4_g32, ...); "
      "without it and --preset: as the checkpoint was trained");
  command->add_option("--preset", o->preset, "all of a preset of the quant section, such as qat_mxfp4_w4a4");
  command->add_option("--method", o->method, "rtn: every weight to the nearest")
      ->check(CLI::IsMember({"rtn"}))
      ->capture_default_str();
  command->add_option("--scale", o->scale, "rule of the scales, as in the quant section; even if absent");
  command->add_option("--activations", o->activations, "format of the layers' inputs; as they are if absent");
  command->add_option("--rotation", o->rotation,
                      "randomised Hadamard of this many neighbours; needs --activations");
  command->add_option("--match", o->match, "pattern over weights; all linear layers of the blocks if absent");
  command->footer(
      "Examples:\n  osprey quantize runs/qat_mxfp4_w4a4 packed\n"
      "  osprey quantize runs/quickstart_osp packed --format mxfp4 --activations mxint8");
  command->callback([o] { run(*o); });
}

}  // namespace osprey
