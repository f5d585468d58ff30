// Every recipe of the repository means something, and means the same after a round trip.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "framework/config/reader.h"
#include "kernels/core/check.h"
#include "launch/recipe.h"
#include "launch/session.h"
#include "tests/support/model_directory.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> recipes(const std::string& folder = "") {
  std::vector<std::string> paths;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(test::source_dir()) / "recipes" / folder))
    if (entry.path().extension() == ".yaml") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::string recipe_path(const std::string& name) {
  return (fs::path(test::source_dir()) / "recipes" / name).string();
}

/// What must be set before a recipe means something: those of fine-tuning begin with a model that the user
/// has.
std::vector<std::string> given_by_the_user(const std::string& path) {
  static const test::TempDir folder;
  if (path.find("/finetune/") == std::string::npos && !path.ends_with("quickstart/owlore.yaml")) return {};
  const fs::path model = folder / "model";
  if (!fs::exists(model)) {
    ModelSpec spec;
    spec.layers = 5;
    spec.hidden_size = 128;
    spec.heads = 2;
    spec.ffn_size = 256;
    spec.vocab_size = 300;
    test::write_model_directory(model, spec);
  }
  return {"model.path=" + model.string(), "data.tokenizer=bytes"};
}

/// The message that loading gives; empty when it is accepted.
std::string error(const std::string& name, const std::vector<std::string>& overrides,
                  std::optional<int64_t> ranks = {}) {
  try {
    load_recipe(recipe_path(name), overrides, ranks);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Recipes, EveryOneParsesAndItsDumpMeansTheSame) {
  const test::TempDir folder;
  EXPECT_GE(recipes().size(), 13u);
  for (const std::string& path : recipes()) {
    SCOPED_TRACE(path);
    const std::string dump = dump_recipe(load_recipe(path, given_by_the_user(path), 2));
    const std::string copy = (folder / "resolved.yaml").string();
    std::ofstream(copy) << dump;
    EXPECT_EQ(dump_recipe(load_recipe(copy, {})), dump);
  }
}

TEST(Recipes, EveryOnePlansForGpus) {
  for (const std::string& path : recipes())
    for (int ranks : {1, 4}) {
      SCOPED_TRACE(path);
      const Recipe recipe = load_recipe(path, given_by_the_user(path));
      if (recipe.train.global_batch_tokens %
          (recipe.train.micro_batch_size * recipe.data.sequence_len * ranks))
        continue;
      std::map<std::string, int64_t> bytes;
      for (const MemoryCategory& c : plan_memory(recipe, 0, ranks, 1, DeviceKind::cuda))
        bytes[c.name] = c.bytes;
      for (const char* category :
           {"parameters", "gradients", "optimizer state", "activations", "GPU workspace"})
        EXPECT_GT(bytes[category], 0) << category;
      EXPECT_EQ(bytes["packed weights"] > 0, !recipe.quant.empty()) << "else a GPU reads weights as they are";
      EXPECT_EQ(bytes.contains("NCCL scratch"), ranks > 1);
    }
}

TEST(Recipes, EveryOneSaysAtItsTopWhatItShows) {
  for (const std::string& path : recipes()) {
    const std::string text = load_yaml_text(path);
    EXPECT_TRUE(text.starts_with("# ")) << path;
    EXPECT_GT(text.find("\n\n"), 60u) << path;
  }
}

TEST(Recipes, RunsOfDifferentRecipesNeverShareADirectory) {
  std::vector<std::string> names;
  for (const std::string& path : recipes())
    names.push_back(load_recipe(path, given_by_the_user(path)).run.name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(Recipes, TheBaselineDiffersFromTheOutlierSafeOneOnlyInItsOutlierSafeParts) {
  Recipe osp = load_recipe(recipe_path("quickstart/osp.yaml"), {});
  const Recipe adam = load_recipe(recipe_path("quickstart/adam.yaml"), {});
  EXPECT_NE(dump_recipe(osp), dump_recipe(adam));
  osp.run.name = adam.run.name;
  osp.model.norm = adam.model.norm;
  osp.model.embedding_projection = adam.model.embedding_projection;
  osp.optim = adam.optim;
  EXPECT_EQ(dump_recipe(osp), dump_recipe(adam));
}

/// Bytes before activations that a recipe of fine-tuning plans for Llama-2-7B on a GPU, 512 tokens at a time.
int64_t planned_for_llama2_7b(const std::string& name, std::vector<std::string> more = {}) {
  std::vector<std::string> overrides = {
      "model={layers: 32, hidden_size: 4096, heads: 32, ffn_size: 11008, vocab_size: 32000}",
      "data.tokenizer=bytes", "train.micro_batch_size=1", "train.global_batch_tokens=512",
      "checkpoint={every_steps: null, save_final: false}"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  const Recipe recipe = load_recipe(recipe_path("finetune/" + name), overrides);
  int64_t bytes = 0;
  for (const MemoryCategory& c : plan_memory(recipe, 0, 1, 1, DeviceKind::cuda))
    if (c.name != "activations" && c.name != "activation gradients" && c.name != "GPU workspace")
      bytes += c.bytes;
  return bytes;
}

TEST(Recipes, OwloreOfLlama2FitsWhatThePaperPromises) {
  const int64_t weights = int64_t{6'738'415'616} * 2;
  EXPECT_GT(planned_for_llama2_7b("owlore.yaml"), weights);
  EXPECT_LT(planned_for_llama2_7b("owlore.yaml"), 17'500'000'000);
  EXPECT_LT(planned_for_llama2_7b("owlore.yaml", {"optim.0.moments=int8"}), 15'500'000'000);
  EXPECT_LT(planned_for_llama2_7b("owlore.yaml", {"optim.0.moments=int8", "train.max_grad_norm=null",
                                                  "train.updates=in_backward"}),
            14'500'000'000);
  EXPECT_GT(planned_for_llama2_7b("full.yaml", {"train.master_weights=fp32"}), 9 * weights - 1'000'000);
}

/// Bytes by category that a recipe with adapters plans for Llama-2-7B on a GPU, 512 tokens at a time.
std::map<std::string, int64_t> adapters_planned_for_llama2_7b(const std::string& name) {
  const std::string path = recipe_path("finetune/" + name);
  std::vector<std::string> overrides = given_by_the_user(path);
  for (const char* more : {"train.micro_batch_size=1", "train.global_batch_tokens=512",
                           "checkpoint={every_steps: null, save_final: false}"})
    overrides.push_back(more);
  Recipe recipe = load_recipe(path, overrides);
  recipe.model = ModelSpec();  // in place of what the directory holds
  recipe.model.layers = 32;
  recipe.model.hidden_size = 4096;
  recipe.model.heads = 32;
  recipe.model.ffn_size = 11008;
  recipe.model.vocab_size = 32000;
  std::map<std::string, int64_t> bytes;
  for (const MemoryCategory& c : plan_memory(recipe, 0, 1, 1, DeviceKind::cuda)) bytes[c.name] = c.bytes;
  return bytes;
}

TEST(Recipes, LoraOfLlama2BesidePackedWeightsHoldsTheirBitsAlone) {
  auto plain = adapters_planned_for_llama2_7b("lora.yaml"),
       packed = adapters_planned_for_llama2_7b("lora_mxfp4.yaml");
  // Of 16 bits in the matrices of 32 layers 4.25 are left.
  const int64_t matrices = int64_t{32} * (4 * 4096 * 4096 + 3 * 4096 * 11008);
  EXPECT_EQ(plain["parameters"] - packed["parameters"], matrices * 2 - matrices * 17 / 32);
  EXPECT_EQ(packed["packed weights"], 0);
  EXPECT_EQ(plain["optimizer state"], packed["optimizer state"]);
  const auto before_activations = [](std::map<std::string, int64_t>& m) {
    return m["parameters"] + m["gradients"] + m["optimizer state"];
  };
  EXPECT_GT(before_activations(plain), 14'000'000'000);
  EXPECT_LT(before_activations(packed), 4'800'000'000);
}

TEST(Recipes, SmokeRecipesRunOnOneTwoAndFourRanks) {
  for (const std::string& path : recipes("smoke"))
    for (const int64_t ranks : {1, 2, 4}) EXPECT_NO_THROW(load_recipe(path, {}, ranks)) << path;
}

TEST(Recipes, AbsurdSizesNameTheirLimit) {
  const std::string recipe = "quickstart/osp.yaml";
  EXPECT_NE(error(recipe, {"model.layers=1000000"}).find("between 1 and 4096"), std::string::npos);
  EXPECT_NE(error(recipe, {"model.vocab_size=1e12"}).find("model.vocab_size must be between"),
            std::string::npos);
  EXPECT_NE(error(recipe, {"train.global_batch_tokens=9223372036854775552"}).find("must be between"),
            std::string::npos);
  EXPECT_NE(error(recipe, {"train.global_batch_tokens=256e9", "train.tokens=1e15"}).find("micro steps of"),
            std::string::npos);
  EXPECT_EQ(error(recipe, {"model.heads=5"}).find('\n'), std::string::npos) << "one cause, one line";
}

TEST(Recipes, ImpossibleCombinationsNameLineAndCure) {
  const std::string osp = recipe_path("quickstart/osp.yaml");
  const std::string heads = error("quickstart/osp.yaml", {"model.heads=5"});
  EXPECT_EQ(heads.find("--set model.heads=5: model.heads: 5 heads do not divide hidden_size 256"), 0u)
      << heads;
  const std::string both = error("quickstart/osp.yaml", {"train.steps=5"});
  EXPECT_NE(both.find("train.tokens: give exactly one of tokens, steps and epochs"), std::string::npos)
      << both;
  const std::string ranks = error("quickstart/osp.yaml", {}, 3);
  EXPECT_NE(ranks.find("train.global_batch_tokens: "), std::string::npos) << ranks;
  EXPECT_EQ(ranks.find(osp + ":"), 0u) << ranks;
  const std::string warmup = error("quickstart/osp.yaml", {"schedule.warmup_steps=1e6"});
  EXPECT_NE(warmup.find("schedule: the warmup has 1000000 steps"), std::string::npos) << warmup;
  EXPECT_NE(error("quickstart/osp.yaml", {"optim=[]"}), "");
  const std::string tokenizer = error("quickstart/osp.yaml", {"data.tokenizer=''"});
  EXPECT_NE(tokenizer.find("data.tokenizer: is not given"), std::string::npos) << tokenizer;
  EXPECT_NE(error("quickstart/osp.yaml", {"parallel.zero=2"}), "");
  EXPECT_NE(error("quickstart/osp.yaml", {"lora={}"}).find("lora is not a key"), std::string::npos);
  EXPECT_NE(
      error("quickstart/osp.yaml", {"train.global_batch_tokens=9e18", "train.micro_batch_size=9e18"}, 4), "");
}

}  // namespace
}  // namespace osprey
