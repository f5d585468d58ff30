#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/config/reader.h"
#include "framework/files/file.h"
#include "kernels/core/check.h"
#include "launch/checkpoints.h"
#include "launch/commands/command.h"
#include "launch/scaling_record.h"
#include "models/make_model.h"
#include "tests/framework/scaling/example_record.h"
#include "tests/framework/scaling/synthetic.h"
#include "tests/support/paths.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using namespace test;

void run_scaling(std::vector<std::string> args) {
  CLI::App app;
  add_scaling(app);
  args.insert(args.begin(), "scaling");
  std::reverse(args.begin(), args.end());
  app.parse(args);
}

std::string refused(const std::vector<std::string>& args) {
  return refusal([&] { run_scaling(args); });
}

nlohmann::json json_of(const fs::path& file) { return nlohmann::json::parse(std::ifstream(file)); }

/// Records that follow Hoffmann's law, in `file`.
void write_records(const fs::path& file) {
  const Law law = Law::chinchilla();
  std::vector<LawPoint> points = grid(many_sizes, many_tokens);
  measure(law, hoffmann, points);
  for (const LawPoint& p : points) {
    RunRecord r = example_record(p.run, static_cast<int64_t>(p.parameters), static_cast<int64_t>(p.tokens));
    r.validation_loss = p.target;
    append_record(file, r);
  }
}

TEST(ScalingCommand, FitsAFileOrAFolderAndWritesJsonAndSvg) {
  const TempDir dir;
  write_records(dir / "scaling.jsonl");
  const std::string file = (dir / "scaling.jsonl").string(), folder = dir.path().string();
  const std::string json = (dir / "fit.json").string(), svg = (dir / "fit.svg").string();
  run_scaling({"fit", file, "--law", "chinchilla", "--bootstrap", "10", "-o", json, "--plot", svg});
  EXPECT_NEAR(json_of(json)["parameters"]["alpha"]["value"].get<double>(), 0.34, 1e-4);
  EXPECT_EQ(read_file(svg, 1 << 20).rfind("<svg ", 0), 0u);
  const std::string first = read_file(json, 1 << 20);
  // The same runs, named twice, count once; the seed is the same.
  run_scaling({"fit", folder, file, "--law", "chinchilla", "--bootstrap", "10", "-o", json});
  EXPECT_EQ(read_file(json, 1 << 20), first);
}

TEST(ScalingCommand, ARunIsFoundInTheFolderAboveIt) {
  const TempDir dir;
  write_records(dir / "scaling.jsonl");
  fs::create_directory(dir / "run1");
  const std::string said = refused({"fit", (dir / "run1/").string(), "--law", "chinchilla"});
  EXPECT_NE(said.find("alpha needs runs of at least 3 different N, and these have one value of N, 30M"),
            std::string::npos)
      << said;
  fs::create_directory(dir / "other");
  EXPECT_NE(
      refused({"fit", (dir / "other").string(), "--law", "chinchilla"}).find("has no line of the run other"),
      std::string::npos);
  const TempDir empty;
  fs::create_directory(empty / "run");
  EXPECT_NE(refused({"fit", (empty / "run").string(), "--law", "chinchilla"}).find("holds no scaling.jsonl"),
            std::string::npos);
}

TEST(ScalingCommand, ARefusedFitWritesNothing) {
  const TempDir dir;
  append_record(dir / "s.jsonl", example_record());
  const std::string json = (dir / "fit.json").string();
  EXPECT_NE(refused({"fit", (dir / "s.jsonl").string(), "--law", "chinchilla", "-o", json}), "accepted");
  EXPECT_FALSE(fs::exists(json));
}

std::string recipe_path() { return (fs::path(source_dir()) / "recipes/quickstart/osp.yaml").string(); }

std::vector<std::string> recipes_in(const fs::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

TEST(ScalingCommand, PlansAGridOfRecipesThatLoad) {
  const TempDir dir;
  run_scaling({"plan", recipe_path(), "--budget", "1e16", "--variant", "s1:run.seed=1", "--variant",
               "s2:run.seed=2,schedule.min_ratio=0.1", "--set", "run.output_dir=elsewhere", "-o",
               (dir / "grid").string()});
  const auto files = recipes_in(dir / "grid");
  ASSERT_EQ(files.size(), 18u);
  double flops = 0;
  std::set<int64_t> sizes, lengths;
  for (const std::string& file : files) {
    const Recipe recipe = load_recipe(file, {}, 1);
    EXPECT_EQ(recipe.run.name + ".yaml", fs::path(file).filename());
    EXPECT_EQ(recipe.run.output_dir, "elsewhere");
    const bool second = file.find("-s2") != std::string::npos;
    EXPECT_EQ(recipe.run.seed, second ? 2 : 1);
    EXPECT_EQ(recipe.schedule.min_ratio, second ? 0.1 : 0.0);
    ParamStore params;
    const auto model = make_model(recipe.model, recipe.data.sequence_len);
    model->declare(params);
    const int64_t tokens = recipe.train.total_steps() * recipe.train.global_batch_tokens;
    EXPECT_EQ(*recipe.train.tokens, tokens);
    flops += model->flops_per_token(recipe.data.sequence_len) * static_cast<double>(tokens);
    sizes.insert(without_embedding(params));
    lengths.insert(tokens);
  }
  EXPECT_EQ(sizes.size(), 3u);
  EXPECT_EQ(lengths.size(), 3u);
  EXPECT_NEAR(flops, 1e16, 1e14);
}

TEST(ScalingCommand, PlansRecipesWhoseQuantizedVariantsFit) {
  const TempDir dir;
  const std::string smoke = (fs::path(source_dir()) / "recipes/smoke/adamw.yaml").string();
  run_scaling({"plan",         smoke,
               "--tokens",     "1e5",
               "--sizes",      "3",
               "--size-ratio", "1.8",
               "--set",        "model.hidden_size=128",
               "--set",        "model.heads=8",
               "--set",        "model.ffn_size=352",
               "--set",        "model.layers=4",
               "--variant",    "q:quant=[{preset: quartet}]",
               "-o",           (dir / "grid").string()});
  const auto files = recipes_in(dir / "grid");
  ASSERT_EQ(files.size(), 3u);
  for (const std::string& file : files) {
    const Recipe recipe = load_recipe(file, {}, 1);
    ParamStore params;
    make_model(recipe.model, recipe.data.sequence_len)->declare(params);
    EXPECT_NO_THROW(QuantSchemes(recipe.quant, params, 0, 1)) << file;
    EXPECT_EQ(recipe.model.ffn_size % 32, 0) << file;
  }
  const std::string said =
      refused({"plan", smoke, "--tokens", "1e5", "--sizes", "1", "--variant",
               "q:quant=[{preset: quartet, match: 'layers.*.mlp.dwn.weight'}]", "-o", (dir / "no").string()});
  EXPECT_NE(said.find("matches no parameter"), std::string::npos) << said;
  EXPECT_FALSE(fs::exists(dir / "no"));
}

TEST(ScalingCommand, PlansTheLengthsThatAreGivenInWholeBatches) {
  const TempDir dir;
  run_scaling(
      {"plan", recipe_path(), "--tokens", "1e6,250001", "--sizes", "1", "-o", (dir / "grid").string()});
  const auto files = recipes_in(dir / "grid");
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(*load_recipe(files[0], {}, 1).train.tokens, 245 * 4096);
  EXPECT_EQ(*load_recipe(files[1], {}, 1).train.tokens, 62 * 4096);
}

TEST(ScalingCommand, APlanThatCannotBeIsRefusedAndWritesNothing) {
  const TempDir dir;
  const std::string out = (dir / "grid").string();
  const auto plan = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"plan", recipe_path(), "-o", out});
    const std::string said = refused(more);
    EXPECT_FALSE(fs::exists(out)) << said;
    return said;
  };
  EXPECT_NE(plan({}).find("give one of --budget"), std::string::npos);
  EXPECT_NE(plan({"--budget", "1e16", "--tokens", "1e6"}).find("give one of --budget"), std::string::npos);
  EXPECT_NE(plan({"--budget", "1e10"}).find("raise --budget"), std::string::npos);
  EXPECT_NE(plan({"--tokens", "x"}).find("--tokens x must be a number"), std::string::npos);
  EXPECT_NE(plan({"--tokens", "1000,1001"}).find("the same number of batches"), std::string::npos);
  EXPECT_NE(plan({"--tokens", "1e6", "--size-ratio", "1"}).find("must be above 1"), std::string::npos);
  EXPECT_NE(plan({"--tokens", "1e6", "--variant", "a:train.steps=4"}).find("which the grid sets itself"),
            std::string::npos);
  EXPECT_NE(plan({"--tokens", "1e6", "--variant", "a", "--variant", "a"}).find("two variants are called a"),
            std::string::npos);
  const std::string wrong = plan({"--tokens", "1e6", "--variant", "a:modl.norm=x"});
  EXPECT_NE(wrong.find("did you mean model"), std::string::npos) << wrong;
  EXPECT_NE(wrong.find("(for variant a)"), std::string::npos) << wrong;
  // Warmup does not fit into a run this short.
  EXPECT_NE(plan({"--tokens", "40960"}).find("schedule"), std::string::npos);
  EXPECT_NE(
      refused({"plan", recipe_path(), "--tokens", "1e6", "-o", source_dir()}).find("not an empty directory"),
      std::string::npos);
}

TEST(ScalingRecord, SaysWhatARecipeSays) {
  Recipe recipe = tiny_recipe();
  const auto comm = make_planning_comm(0, 1);
  const Session session(recipe, *comm, {.device = {DeviceKind::meta, 0}}, {});
  const auto tokenizer = load_tokenizer("bytes");
  const RunRecord r = record_of(recipe, session, *tokenizer);
  EXPECT_EQ(r.run, recipe.run.name);
  EXPECT_EQ(r.recipe_hash, recipe_hash(recipe));
  EXPECT_EQ(r.tokens, recipe.train.total_steps() * recipe.train.global_batch_tokens);
  EXPECT_EQ(r.parameters - r.parameters_without_embedding, 96 * 64);
  EXPECT_EQ(r.tokenizer, tokenizer->fingerprint());
  EXPECT_TRUE(r.formats.full_precision());
  EXPECT_GT(r.flops,
            6.0 * static_cast<double>(r.tokens) * static_cast<double>(r.parameters_without_embedding) * 0.9);
  RunRecord complete = r;
  complete.validation_loss = 2;
  std::string line = line_of(complete);
  line.pop_back();
  EXPECT_EQ(parse_record("x", line), complete);
  recipe.quant = {read_spec<QuantGroupSpec>("{preset: quartet, first_step: 3}", "quant")};
  EXPECT_EQ(
      record_of(recipe, session, *tokenizer).formats.scheme(),
      "mxfp4/mxfp4/mxfp4 (scales mse mse rceil, stochastic gradients, rotation 32, backward rotation 32, "
      "masked gradients, from 50 percent on)");
  recipe.run.seed += 1;
  EXPECT_NE(recipe_hash(recipe), r.recipe_hash);
}

/// What is recorded of a run with this quant section.
RunFormats formats_with(const std::string& quant, const std::string& steps = "6") {
  const Recipe recipe = tiny_recipe({"quant=" + quant, "train.steps=" + steps});
  const auto comm = make_planning_comm(0, 1);
  const Session session(recipe, *comm, {.device = {DeviceKind::meta, 0}}, {});
  return record_of(recipe, session, *load_tokenizer("bytes")).formats;
}

TEST(ScalingRecord, OfSeveralGroupsHasTheFormatsOfTheLargestAndTheWordsOfAll) {
  const std::string down =
      "{match: layers.*.mlp.down.weight, weights: {format: mxfp4}, activations: {format: mxint8}}";
  const RunFormats rotated = formats_with("[" + down + ", {preset: qat_mxfp4_w4a4}]");
  EXPECT_EQ(rotated.scheme(),
            "mxfp4/mxfp4/f32 (layers.*.mlp.down.weight: mxfp4/mxint8/f32, scales even even; "
            "layers.*.{attn.q,attn.k,attn.v,attn.o,mlp.gate,mlp.up,mlp.down}.weight: mxfp4/mxfp4/f32, scales "
            "even even, rotation 32)");
  for (const char* second : {"{preset: mxint8}", "{preset: quartet}", "{preset: weight_only}",
                             "{preset: qat_mxfp4_w4a4, match: 'layers.*.attn.*.weight'}"})
    EXPECT_NE(formats_with("[" + down + ", " + second + "]"), rotated) << second;
  EXPECT_EQ(formats_with("[" + down + ", {weights: {format: int8_g64}}]").block, 64);
  EXPECT_EQ(formats_with("[" + down + "]").how, "layers.*.mlp.down.weight: scales even even");
}

TEST(ScalingRecord, ABeginIsAShareOfTheRunSoThatLengthsAreOneScheme) {
  EXPECT_EQ(formats_with("[{preset: mxint8, first_step: 70}]", "100"),
            formats_with("[{preset: mxint8, first_step: 171}]", "245"));
  EXPECT_NE(formats_with("[{preset: mxint8, first_step: 70}]", "100"),
            formats_with("[{preset: mxint8, first_step: 80}]", "100"));
  EXPECT_NE(formats_with("[{preset: mxint8, first_step: 1}]", "1000"),
            formats_with("[{preset: mxint8}]", "1000"));
}

TEST(ScalingRecord, EveryKeyThatChangesARunIsPartOfItsScheme) {
  const auto how = [](const std::string& keys) {
    return formats_with(
               "[{weights: {format: int8_row}, activations: {format: int8_row}, gradients: {format: "
               "mxint8}" +
                   keys + "}]",
               "100")
        .how;
  };
  std::vector<std::string> seen = {how("")};
  for (const char* keys :
       {", rotation: 32", ", backward_rotation: 32", ", gradient_mask: unclipped", ", end_step: 60",
        ", anneal_steps: 20", ", anneal_steps: 20, anneal_order: last_layers", ", freeze: {}",
        ", freeze: {first_step: 50}", ", freeze: {anneal_steps: 50}", ", freeze: {boundary: 0.1}",
        ", rotation: 32, rotate: measured", ", rotation: 32, rotate: measured, calibration_steps: 10",
        ", rotation: 32, rotate: measured, outlier_ratio: 3"}) {
    const std::string words = how(keys);
    EXPECT_EQ(std::count(seen.begin(), seen.end(), words), 0) << keys << ": " << words;
    seen.push_back(words);
  }
}

}  // namespace
}  // namespace osprey
