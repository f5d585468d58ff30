#include "launch/recipe.h"

#include <algorithm>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "framework/quant/step_sizes.h"
#include "kernels/core/check.h"
#include "models/hf/hub_model.h"

namespace osprey {
namespace {

/// Why warmup and decay do not fit into the run; empty when they do.
std::string schedule_problem(const ScheduleSpec& schedule, const TrainSpec& train) {
  // With epochs the length is known once the data are open; wrong lengths are reported by TrainSpec.
  if (train.epochs || train.tokens.has_value() == train.steps.has_value()) return "";
  try {
    Schedule(schedule, train.total_steps(), train.global_batch_tokens);
  } catch (const Error& error) {
    const std::string text = error.what();  // "[schedule] the warmup ..."
    return text.substr(std::min(text.size(), text.find("] ") + 2));
  }
  return "";
}

/// Tokens that a micro batch must hold a multiple of, for products that sum over tokens.
int64_t token_block(const QuantGroupSpec& group) {
  for (const NamedFormat& f : block_formats())
    if (f.name == group.gradients->format)
      return std::max<int64_t>({f.format.block, group.backward_rotation, 1});
  return 1;  // an unknown format is reported where it stands
}

/// The `model` section: a directory, or the model's own keys.
struct ModelSection {
  std::string& path;
  ModelSpec& spec;
  void fields(Fields& f) {
    f("path", path,
      "Hugging Face directory of the model that training starts from (config.json and safetensors); it decides all "
      "other keys. Empty: a new model");
    f.when(path.empty(), "path is empty", [&] { spec.fields(f); });
  }
};

}  // namespace

void Recipe::fields(Fields& f) {
  f.section("run", run, "where a run lives and what it runs on");
  ModelSection section{model_path, model};
  f.section("model", section, "what is trained");
  f.section("finetune", finetune, "which parameters train, and in how little memory");
  f.section("data", data, "what it is trained on");
  f.list("optim", optim,
         "which optimizer trains which parameter: the first group whose pattern matches takes it; a pattern "
         "that takes "
         "nothing and a parameter that nothing takes are errors");
  f.list("quant", quant,
         "which linear layers compute with packed numbers, and how: the first group whose pattern matches a "
         "weight takes it; what none matches stays as it is");
  f.section("schedule", schedule, "the learning rate over the run");
  f.section("train", train, "length, batch and precision");
  f.section("parallel", parallel, "how ranks share the work");
  f.section("checkpoint", checkpoint, "what is saved, and where a run begins again");
  f.section("telemetry", telemetry, "what of a run is written down");

  for (size_t i = 0; i < quant.size(); ++i) {
    const auto& gradients = quant[i].gradients;
    const int64_t tokens = train.micro_batch_size * data.sequence_len,
                  block = gradients ? token_block(quant[i]) : 1;
    f.rule(tokens % block == 0, "quant",
           fmt::format(
               "gradients in {} are quantized in blocks of {} tokens, and train.micro_batch_size {} x "
               "data.sequence_len {} = {} are no multiple of that",
               gradients ? gradients->format : "", block, train.micro_batch_size, data.sequence_len, tokens));
  }
  const bool four_bits = std::any_of(quant.begin(), quant.end(), [](const QuantGroupSpec& g) {
    return std::any_of(block_formats().begin(), block_formats().end(), [&](const NamedFormat& one) {
      return g.weights && one.name == g.weights->format && one.format.bits() == 4;
    });
  });
  f.rule(!telemetry.oscillation || four_bits, "telemetry.oscillation",
         "follows weights of 4 bits, and no group of quant has any; give one weights in mxfp4, nvfp4 or an "
         "int4 format, or leave oscillation off");
  f.rule(
      !finetune.takes_turns() || (model.norm != NormKind::ssnorm && !model.embedding_projection), "finetune",
      "layers that take turns are saved as a Hugging Face directory while they sleep, which knows neither ssnorm nor "
      "embedding_projection; start from one with model.path (a checkpoint of such a run is one)");
  f.rule(!finetune.in_subspaces() || quant.empty(), "quant",
         "has no gradients in subspaces yet; fine-tune with lora, lisa or badam, or without quant");
  f.rule(finetune.method == FinetuneSpec::Method::full ||
             std::none_of(quant.begin(), quant.end(), [](const QuantGroupSpec& g) { return g.freeze; }),
         "quant",
         "freezes elements of weights, which only finetune.method: full trains throughout; drop freeze");
  f.rule(train.updates == Updates::after_backward ||
             std::none_of(quant.begin(), quant.end(), [](const QuantGroupSpec& g) { return g.freeze; }),
         "quant",
         "freezes elements of weights between backward and update; set train.updates: after_backward");
  const bool learns_steps = std::any_of(quant.begin(), quant.end(), [](const QuantGroupSpec& g) {
    return learns_step(g.weights) || learns_step(g.activations);
  });
  f.rule(
      !learns_steps || !finetune.takes_turns(), "quant",
      "learns step sizes from the first batch on, which layers that sleep would miss; set finetune.method: full");
  f.rule(
      !learns_steps || model_path.empty(), "quant",
      "learns step sizes of models that are trained from nothing; drop model.path, or take another preset");
  f.rule(finetune.method != FinetuneSpec::Method::dora || quant.empty(), "quant",
         "has other lengths than the weights that dora scales; drop it, or set finetune.method: lora");
  f.rule(finetune.base_format.empty() || quant.empty(), "quant",
         "has nothing to say where finetune.base_format packs the matrices of layers; drop one of them");
  const bool from_masters = std::any_of(quant.begin(), quant.end(), [](const QuantGroupSpec& g) {
    return g.freeze || learns_step(g.weights) || learns_step(g.activations);
  });
  f.rule(!from_masters || train.masters == Masters::kept, "train.master_weights",
         "must be fp32 where quant learns step sizes or freezes weights, which both read and write masters");
  f.rule(!finetune.adapts() || !model_path.empty(), "finetune.method",
         "lora and dora adapt a model that is there; name its directory in model.path");
  f.rule(!data.tokenizer.empty() || !model_path.empty(), "data.tokenizer",
         "is not given; osprey prepare writes one beside the shards");
  f.rule(model.family != ModelSpec::Family::gpt || data.sequence_len <= model.max_positions,
         "model.max_positions",
         fmt::format("{} positions are fewer than data.sequence_len {}; raise the one or lower the other",
                     model.max_positions, data.sequence_len));
  f.rule(!optim.empty(), "optim",
         "names no optimizer; `- { match: \"*\", kind: adamw, learning_rate: 5.0e-4 }` is the least");
  const std::string problem = schedule_problem(schedule, train);
  f.rule(problem.empty(), "schedule", problem);
}

void Recipe::rank_rules(Fields& f, int64_t ranks) const {
  const int64_t micro = train.micro_batch_size, length = data.sequence_len, batch = train.global_batch_tokens;
  // Divisions one by one: the product of three hostile numbers would overflow.
  const int64_t micro_steps = batch / micro / length / ranks;
  const bool divides =
      batch % micro == 0 && batch / micro % length == 0 && batch / micro / length % ranks == 0;
  f.rule(
      !divides || train.updates == Updates::after_backward || (micro_steps == 1 && ranks == 1),
      "train.updates",
      fmt::format(
          "in_backward uses gradients as they are formed, with nothing to add to them, and here are {} micro "
          "steps on each of {} rank{}; use one rank, and set global_batch_tokens to micro_batch_size {} x "
          "sequence_len {} = {}",
          micro_steps, ranks, ranks == 1 ? "" : "s", micro, length, micro * length));
  constexpr int64_t most_micro_steps = 1 << 16;
  f.rule(divides, "train.global_batch_tokens",
         fmt::format(
             "{} is no multiple of micro_batch_size {} x sequence_len {} x {} rank{}; change one of them",
             batch, micro, length, ranks, ranks == 1 ? "" : "s"));
  f.rule(!divides || micro_steps <= most_micro_steps, "train.global_batch_tokens",
         fmt::format(
             "{} tokens are {} micro steps of micro_batch_size {} x sequence_len {} on each of {} rank{}; "
             "at most {} are supported, so lower it or raise micro_batch_size",
             batch, micro_steps, micro, length, ranks, ranks == 1 ? "" : "s", most_micro_steps));
}

Recipe read_recipe(const std::string& path, const std::vector<std::string>& overrides,
                   std::optional<int64_t> ranks) {
  Recipe recipe;
  read_yaml(load_yaml_text(path), path, overrides, [&](Fields& f) {
    recipe.fields(f);
    recipe.rank_rules(f, ranks.value_or(1));  // what one rank cannot divide, no number of ranks can
  });
  return recipe;
}

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides,
                   std::optional<int64_t> ranks, ModelFiles files) {
  Recipe recipe = read_recipe(path, overrides, ranks);
  if (!recipe.model_path.empty()) {
    const bool whole = files == ModelFiles::weights || has_weights(recipe.model_path);
    recipe.model = whole ? HubModel(recipe.model_path).spec() : read_model_config(recipe.model_path);
    if (recipe.data.tokenizer.empty()) recipe.data.tokenizer = recipe.model_path;
  }
  return recipe;
}

std::string dump_recipe(const Recipe& recipe) { return dump_spec(recipe); }

}  // namespace osprey
