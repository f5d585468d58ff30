#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "framework/config/numbers.h"
#include "framework/files/file.h"
#include "framework/scaling/fit.h"
#include "framework/scaling/grid.h"
#include "framework/scaling/points.h"
#include "framework/scaling/run_record.h"
#include "framework/scaling/words.h"
#include "launch/check_patterns.h"
#include "launch/commands/command.h"
#include "launch/data_source.h"
#include "launch/recipe.h"
#include "launch/report/scaling_plot.h"
#include "launch/session.h"
#include "models/make_model.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using Kind = Law::Kind;

// ---- fit -----------------------------------------------------------------------------------------

struct FitCommand {
  std::vector<std::string> inputs;
  std::string law;
  std::vector<std::string> fixed;
  int64_t bootstrap = 200;
  int64_t seed = 0;
  std::string parameters = "without_embedding", loss = "validation";
  std::string optimizer, scheme, reference;
  std::string output, plot;
};

/// A file of records; a folder of runs, which holds one; or one run, whose records stand in the folder above
/// it.
std::vector<RunRecord> records_at(const std::string& input) {
  const fs::path path(input);
  if (!fs::is_directory(path)) return read_records(path);
  if (fs::exists(path / "scaling.jsonl")) return read_records(path / "scaling.jsonl");
  const fs::path whole = fs::absolute(path).lexically_normal();
  const fs::path run = whole.has_filename() ? whole : whole.parent_path(),
                 file = run.parent_path() / "scaling.jsonl";
  require(
      fs::exists(file), "scaling",
      "{} holds no scaling.jsonl, and neither does the folder above it; osprey train writes one when a run is "
      "finished",
      input);
  std::vector<RunRecord> records = read_records(file);
  std::erase_if(records, [&](const RunRecord& r) { return r.run != run.filename().string(); });
  require(!records.empty(), "scaling", "{} has no line of the run {}; is it finished?", file.string(),
          run.filename().string());
  return records;
}

std::map<std::string, double> fixed_of(const std::vector<std::string>& assignments) {
  std::map<std::string, double> fixed;
  for (const std::string& text : assignments) {
    const size_t equals = text.rfind('=');
    const auto value = equals == std::string::npos ? std::nullopt : parse_real(text.substr(equals + 1));
    require(value && equals > 0, "scaling", "--fix {} must read NAME=VALUE, as in --fix E=1.69", text);
    require(fixed.emplace(text.substr(0, equals), *value).second, "scaling", "--fix {} is given twice",
            text.substr(0, equals));
  }
  return fixed;
}

/// "3 values from 1.2M to 9.6M".
std::string range_of(const std::vector<LawPoint>& points, double (*of)(const LawPoint&)) {
  std::vector<double> values;
  for (const LawPoint& p : points) values.push_back(of(p));
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return fmt::format("{} values from {} to {}", values.size(), short_count(std::llround(values.front())),
                     short_count(std::llround(values.back())));
}

void print_fit(const Fit& fit, const LawData& data, const PointOptions& options) {
  const bool differences = fit.law.kind() == Kind::qat;
  fmt::print("{}: {}\n", fit.law.name(), fit.law.formula());
  fmt::print("{} {}; N: {}{}; D: {}\n", fit.points.size(), differences ? "pairs" : "runs",
             range_of(fit.points, [](const LawPoint& p) { return p.parameters; }),
             options.size == PointOptions::Size::all ? "" : " (without embedding)",
             range_of(fit.points, [](const LawPoint& p) { return p.tokens; }));
  if (fit.law.kind() == Kind::per_optimizer) fmt::print("rho of {} is 1\n", fit.law.groups().front());
  for (const std::string& text : data.left_out) fmt::print("left out: {}\n", text);
  size_t longest = 10;
  for (const FittedParameter& p : fit.parameters) longest = std::max(longest, p.name.size());
  fmt::print("\n{:<{}}  {:>11}{}\n", "parameter", longest, "value",
             fit.bootstrap > 0 ? "   95 percent interval" : "");
  for (const FittedParameter& p : fit.parameters) {
    fmt::print("{:<{}}  {:>11.5g}", p.name, longest, p.value);
    if (p.fixed) fmt::print("   fixed");
    if (p.low) fmt::print("   {:.5g} to {:.5g}", *p.low, *p.high);
    fmt::print("\n");
  }
  fmt::print("\nresiduals of ln {}: {:.2g} rms\n", differences ? "delta" : "L", fit.rms_log_residual);
  const HeldOut& held = fit.held_out;
  if (held.why_not)
    fmt::print("held out: no figure; without the {} of largest N*D, {}\n", held.runs.size(), *held.why_not);
  else
    fmt::print(
        "held out: the {} of largest N*D, predicted by the others within {:.2g} percent, {:.2g} nats (mean)\n",
        held.runs.size(), 100 * std::expm1(held.mean_log_error), held.mean_error);
}

void fit_runs(const FitCommand& command) {
  constexpr std::pair<const char*, Kind> kinds[] = {{"chinchilla", Kind::chinchilla},
                                                    {"qat", Kind::qat},
                                                    {"quartet", Kind::quartet},
                                                    {"per_optimizer", Kind::per_optimizer}};
  Kind kind = Kind::chinchilla;
  for (const auto& [name, value] : kinds)
    if (command.law == name) kind = value;
  require(command.reference.empty() || kind == Kind::per_optimizer, "scaling",
          "--reference is for --law per_optimizer, not for {}", command.law);
  const FitOptions options{fixed_of(command.fixed), command.bootstrap, static_cast<uint64_t>(command.seed)};
  PointOptions which;
  if (command.parameters == "all") which.size = PointOptions::Size::all;
  if (command.loss == "train") which.loss = PointOptions::Loss::train;
  if (!command.optimizer.empty()) which.optimizer = command.optimizer;
  if (!command.scheme.empty()) which.scheme = command.scheme;
  if (!command.reference.empty()) which.reference = command.reference;
  const auto exponent = options.fixed.find("gG");
  which.block_matters = exponent == options.fixed.end() || exponent->second != 0;
  std::vector<RunRecord> records;
  for (const std::string& input : command.inputs)
    for (RunRecord& r : records_at(input))  // a run that is named twice, alone and by its folder, counts once
      if (std::find(records.begin(), records.end(), r) == records.end()) records.push_back(std::move(r));
  const LawData data = points_of(kind, records, which);
  const Fit fit = fit_law(data.law, data.points, options);
  print_fit(fit, data, which);
  if (!command.output.empty()) replace_file(command.output, fit_json(fit));
  if (!command.plot.empty()) replace_file(command.plot, report::scaling_svg(fit));
  for (const std::string& file : {command.output, command.plot})
    if (!file.empty()) fmt::print("wrote {}\n", file);
}

void add_fit(CLI::App& parent) {
  const auto command = std::make_shared<FitCommand>();
  CLI::App* app = parent.add_subcommand("fit", "fit a scaling law to finished runs");
  app->footer(
      "Example:\n  osprey scaling fit runs --law chinchilla --plot fit.svg\n  osprey scaling fit runs --law quartet "
      "--fix E=1.69 -o fit.json");
  app->add_option("RUN_OR_JSONL", command->inputs,
                  "folders of runs, single runs, or files of records (scaling.jsonl)")
      ->required();
  app->add_option("--law", command->law,
                  "chinchilla, qat, quartet or per_optimizer; docs/scaling.md has the formulas")
      ->check(CLI::IsMember({"chinchilla", "qat", "quartet", "per_optimizer"}))
      ->required();
  app->add_option("--fix", command->fixed,
                  "NAME=VALUE: a parameter that is given, not fitted; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  app->add_option("--bootstrap", command->bootstrap, "resamples for the intervals; 0: no intervals")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  app->add_option("--seed", command->seed, "of the resamples")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 62))
      ->capture_default_str();
  app->add_option("--parameters", command->parameters, "which count is N: without_embedding or all")
      ->check(CLI::IsMember({"without_embedding", "all"}))
      ->capture_default_str();
  app->add_option("--loss", command->loss, "validation, or train: the mean over the last steps")
      ->check(CLI::IsMember({"validation", "train"}))
      ->capture_default_str();
  app->add_option("--optimizer", command->optimizer, "only runs of this one, as in muon+adamw");
  app->add_option(
      "--scheme", command->scheme,
      "only quantized runs of this one: WEIGHTS/ACTIVATIONS/GRADIENTS, as in mxfp4/mxfp4/bf16, and where "
      "several schemes have these formats all of it, as in \"mxfp4/mxfp4/bf16 (scales even even)\"");
  app->add_option("--reference", command->reference,
                  "per_optimizer: the one whose rho is 1; that of the first run by default");
  app->add_option("-o,--output", command->output, "where to write the fit as JSON");
  app->add_option("--plot", command->plot, "where to draw it, as SVG");
  app->callback([command] { fit_runs(*command); });
}

// ---- plan ----------------------------------------------------------------------------------------

struct PlanCommand : RecipeOptions {
  double budget = 0;
  std::vector<std::string> tokens;
  int64_t sizes = 3, lengths = 3;
  double size_ratio = 2, length_ratio = 3;
  std::vector<std::string> variants;
  std::string output;
};

ModelScale scale_of(const ModelSpec& m) { return {m.layers, m.heads, m.groups(), m.hidden_size, m.ffn_size}; }

ModelSpec with_scale(ModelSpec m, const ModelScale& scale) {
  m.layers = scale.layers;
  m.heads = scale.heads;
  if (m.kv_heads) m.kv_heads = scale.kv_heads;
  m.hidden_size = scale.hidden_size;
  m.ffn_size = scale.ffn_size;
  return m;
}

struct PlannedModel {
  ModelScale scale;
  int64_t parameters = 0;  // without embedding
  double flops_per_token = 0;
};

PlannedModel planned(const Recipe& recipe, const ModelScale& scale) {
  ParamStore params;
  const auto model = make_model(with_scale(recipe.model, scale), recipe.data.sequence_len);
  model->declare(params);
  return {scale, without_embedding(params), model->flops_per_token(recipe.data.sequence_len)};
}

/// Keys that the grid sets, so that a variant must not.
void check_variant(const Variant& variant) {
  for (const std::string& assignment : variant.overrides)
    for (const char* key : {"run.name", "train.tokens", "train.steps", "train.epochs", "model.layers",
                            "model.heads", "model.kv_heads", "model.hidden_size", "model.ffn_size"})
      require(assignment.substr(0, assignment.find('=')) != key, "scaling",
              "--variant {} sets {}, which the grid sets itself", variant.name, key);
}

std::vector<Variant> variants_of(const std::vector<std::string>& texts) {
  std::vector<Variant> variants;
  for (const std::string& text : texts) {
    variants.push_back(parse_variant(text));
    check_variant(variants.back());
    for (size_t i = 0; i + 1 < variants.size(); ++i)
      require(variants[i].name != variants.back().name, "scaling", "two variants are called {}",
              variants.back().name);
  }
  if (variants.empty()) variants.push_back({"base", {}});
  return variants;
}

std::vector<int64_t> lengths_of(const PlanCommand& command, const Recipe& base,
                                const std::vector<PlannedModel>& models, int64_t variants) {
  const int64_t batch = base.train.global_batch_tokens;
  if (command.tokens.empty()) {
    std::vector<double> flops;
    for (const PlannedModel& m : models) flops.push_back(m.flops_per_token);
    return lengths_for(command.budget, flops, command.lengths, command.length_ratio, batch, variants);
  }
  std::vector<int64_t> lengths;
  for (const std::string& text : command.tokens) {
    const auto tokens = parse_integer(text);
    require(tokens && *tokens >= 1 && *tokens <= int64_t{1} << 60, "scaling",
            "--tokens {} must be a number of tokens, as in --tokens 1e7,4e7", text);
    lengths.push_back((*tokens + batch - 1) / batch * batch);  // as a run rounds it
  }
  std::sort(lengths.begin(), lengths.end());
  require(std::adjacent_find(lengths.begin(), lengths.end()) == lengths.end(), "scaling",
          "two of --tokens are the same number of batches of {} tokens", batch);
  return lengths;
}

/// What widths must be multiples of so that quantized runs fit as well: 32, or the largest block or rotation.
int64_t width_unit(const PlanCommand& command, const std::vector<Variant>& variants) {
  int64_t unit = 32;
  for (const Variant& variant : variants) {
    std::vector<std::string> overrides = command.overrides;
    overrides.insert(overrides.end(), variant.overrides.begin(), variant.overrides.end());
    // Lengths are the grid's; here none may be too short.
    for (const char* length : {"train.steps=null", "train.epochs=null", "train.tokens=1e15"})
      overrides.push_back(length);
    Recipe recipe;
    try {
      recipe = load_recipe(command.recipe, overrides);
    } catch (const Error& error) {
      throw Error(fmt::format("{} (for variant {})", error.what(), variant.name));
    }
    for (const QuantGroupSpec& g : recipe.quant) {
      unit = std::max({unit, g.rotation, g.backward_rotation});
      for (const auto* o : {&g.weights, &g.activations, &g.gradients})
        if (*o) unit = std::max<int64_t>(unit, (*o)->block_format().block);
    }
  }
  return unit;
}

/// As `osprey check` does.
void check(const Recipe& recipe) {
  check_files(recipe);
  check_patterns(recipe);
}

/// File name and text of every recipe.
std::map<std::string, std::string> recipes_of(const PlanCommand& command, const Recipe& base,
                                              const std::vector<PlannedModel>& models,
                                              const std::vector<int64_t>& lengths,
                                              const std::vector<Variant>& variants) {
  std::map<std::string, std::string> files;
  for (const PlannedModel& m : models)
    for (const int64_t tokens : lengths)
      for (const Variant& variant : variants) {
        const std::string run = fmt::format("{}-n{}-d{}-{}", base.run.name, short_count(m.parameters),
                                            short_count(tokens), variant.name);
        std::vector<std::string> overrides = command.overrides;
        overrides.insert(overrides.end(), variant.overrides.begin(), variant.overrides.end());
        const std::pair<const char*, int64_t> numbers[] = {{"model.layers", m.scale.layers},
                                                           {"model.heads", m.scale.heads},
                                                           {"model.hidden_size", m.scale.hidden_size},
                                                           {"model.ffn_size", m.scale.ffn_size},
                                                           {"train.tokens", tokens},
                                                           {"model.kv_heads", m.scale.kv_heads}};
        for (const auto& [key, value] : numbers)
          if (key != std::string_view("model.kv_heads") || base.model.kv_heads)
            overrides.push_back(fmt::format("{}={}", key, value));
        overrides.push_back("train.steps=null");
        overrides.push_back("train.epochs=null");
        overrides.push_back(fmt::format("run.name=\"{}\"", run));
        Recipe recipe;
        try {
          recipe = load_recipe(command.recipe, overrides);
          check(recipe);
        } catch (const Error& error) {
          throw Error(fmt::format("{} (for {})", error.what(), run));
        }
        const std::string head = fmt::format(
            "# One of a grid of runs for osprey scaling fit: {} parameters without embedding, {} tokens, variant {}.\n",
            m.parameters, tokens, variant.name);
        require(files.emplace(run + ".yaml", head + dump_recipe(recipe)).second, "scaling",
                "two runs of the grid would be called {}; raise --size-ratio or --length-ratio", run);
      }
  return files;
}

void plan_grid(const PlanCommand& command) {
  require(command.tokens.empty() != (command.budget == 0), "scaling",
          "give one of --budget (FLOPs of all runs together) and --tokens (the lengths of the runs)");
  require(std::isfinite(command.budget) && command.budget >= 0, "scaling", "--budget must be above 0, got {}",
          command.budget);
  for (const double ratio : {command.size_ratio, command.length_ratio})
    require(ratio > 1 && ratio <= 1000, "scaling",
            "--size-ratio and --length-ratio must be above 1 and at most 1000, got {}", ratio);
  const fs::path folder = command.output;
  require(!fs::exists(folder) || (fs::is_directory(folder) && fs::is_empty(folder)), "scaling",
          "{} exists and is not an empty directory; choose another", folder.string());
  const Recipe base = load_recipe(command.recipe, command.overrides);
  const std::vector<Variant> variants = variants_of(command.variants);
  std::vector<PlannedModel> models;
  const auto parameters = [&](const ModelScale& s) { return planned(base, s).parameters; };
  for (const ModelScale& s : smaller_models(scale_of(base.model), command.sizes, command.size_ratio,
                                            width_unit(command, variants), parameters))
    models.push_back(planned(base, s));
  const auto lengths = lengths_of(command, base, models, static_cast<int64_t>(variants.size()));
  const auto files = recipes_of(command, base, models, lengths, variants);

  fmt::print("{:>10} {:>7} {:>6} {:>7} {:>10} {:>8} {:>12}\n", "N", "layers", "heads", "width", "D", "D/N",
             "FLOPs a run");
  double all = 0;
  for (const PlannedModel& m : models)
    for (const int64_t tokens : lengths) {
      const double flops = m.flops_per_token * static_cast<double>(tokens);
      all += flops * static_cast<double>(variants.size());
      fmt::print("{:>10} {:>7} {:>6} {:>7} {:>10} {:>8.1f} {:>12.3g}\n", short_count(m.parameters),
                 m.scale.layers, m.scale.heads, m.scale.hidden_size, short_count(tokens),
                 static_cast<double>(tokens) / static_cast<double>(m.parameters), flops);
    }
  std::vector<std::string> names;
  for (const Variant& v : variants) names.push_back(v.name);
  fmt::print("\n{} runs ({} a point: {}), {:.4g} FLOPs in all; N without embedding\n", files.size(),
             variants.size(), scaling::joined(names), all);
  std::error_code error;
  fs::create_directories(folder, error);
  require(!error, "scaling", "cannot create {}: {}", folder.string(), error.message());
  for (const auto& [name, text] : files) replace_file(folder / name, text);
  fmt::print("wrote {0}/*.yaml; launch/sweep {0} runs them\n", folder.string());
}

void add_grid(CLI::App& parent) {
  const auto command = std::make_shared<PlanCommand>();
  CLI::App* app = parent.add_subcommand("plan", "write recipes for a grid of sizes, lengths and variants");
  app->footer(
      "Example:\n  osprey scaling plan recipes/quickstart/osp.yaml --budget 1e15 --sizes 3 -o grid\n  osprey scaling plan "
      "recipes/quickstart/osp.yaml --tokens 1e6,4e6,16e6 --variant s1:run.seed=1 --variant s2:run.seed=2 -o grid");
  command->add_to(*app);
  app->add_option("--budget", command->budget, "FLOPs of all runs together; sets the lengths");
  app->add_option("--tokens", command->tokens, "the lengths themselves, as in 1e7,4e7,16e7")->delimiter(',');
  app->add_option("--sizes", command->sizes, "number of models; the recipe's is the largest")
      ->check(CLI::Range(1, 20))
      ->capture_default_str();
  app->add_option("--size-ratio", command->size_ratio,
                  "parameters of a model over those of the next smaller one")
      ->capture_default_str();
  app->add_option("--lengths", command->lengths, "number of lengths, with --budget")
      ->check(CLI::Range(1, 20))
      ->capture_default_str();
  app->add_option("--length-ratio", command->length_ratio,
                  "a length over the next shorter one, with --budget")
      ->capture_default_str();
  app->add_option("--variant", command->variants,
                  "NAME or NAME:key=value[,key=value]: every point is also trained this way; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  app->add_option("-o,--output", command->output, "a new folder for the recipes")->required();
  app->callback([command] { plan_grid(*command); });
}

}  // namespace

void add_scaling(CLI::App& app) {
  CLI::App* command = app.add_subcommand("scaling", "plan runs for a scaling law, and fit it to them");
  command->require_subcommand(1);
  command->footer("Example:\n  osprey scaling fit runs --law chinchilla");
  add_fit(*command);
  add_grid(*command);
}

}  // namespace osprey
