// Fine-tuning on conversations against a plain loop of PyTorch (sft/golden.py): the same tokens, the same
// targets, the same losses step by step.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/data/instruction_data.h"
#include "framework/files/json.h"
#include "launch/data_source.h"
#include "launch/session.h"
#include "tests/support/paths.h"
#include "tests/support/tiny_run.h"

using namespace osprey;
using namespace osprey::test;

namespace {

std::string here(const char* name) {
  return (std::filesystem::path(source_dir()) / "tests/launch/sft" / name).string();
}

const nlohmann::json& golden() {
  static const nlohmann::json all = read_json(here("golden.json"), 1 << 20, 4);
  return all;
}

std::vector<double> numbers(const char* key) { return golden()[key].get<std::vector<double>>(); }

/// Eight rows, one batch a step, in two micro batches.
Recipe recipe(const std::vector<std::string>& changes) {
  std::vector<std::string> all = {
      fmt::format("model={{path: {}/tests/models/hf/golden/llama3}}", source_dir()),
      "data.tokenizer=" + here("tokenizer"),
      fmt::format("data.train=[{{path: '{}'}}]", here("rows.jsonl")),
      fmt::format("data.validation=[{{path: '{}'}}]", here("rows.jsonl")),
      "data.sequence_len=62",
      "optim=[{match: '*', kind: adamw, learning_rate: 0.02, betas: [0.9, 0.999], weight_decay: 0.1}]",
      "schedule={kind: linear, warmup_steps: 2}",
      "data.packing=false",
      "train.global_batch_tokens=496",
      "train.micro_batch_size=4",
      "train.steps=3",
      "finetune={method: full}"};
  all.insert(all.end(), changes.begin(), changes.end());
  return tiny_recipe(all);
}

struct Trained : StepHook {
  /// What `osprey train` does with the recipe.
  explicit Trained(Recipe recipe) {
    const RunData data = open_data(recipe, 1);
    const auto world = make_self_comm();
    Session session(recipe, *world, Queue{},
                    SessionMemory::of(plan_memory(recipe, 0, 1, 1, DeviceKind::cpu)));
    session.initialize();
    TrainSource train(*data.train, *world);
    ValidationSource validation(*data.validation, *world);
    TrainerParts parts = session.parts();
    parts.train = &train;
    parts.validation = &validation;
    parts.validation_sequences = data.validation->rows();
    Trainer trainer(recipe.train, parts);
    trainer.add_hook(session.finetuning.get());
    trainer.add_hook(session.schemes.get());
    trainer.add_hook(this);
    trainer.run(0);
    after = trainer.evaluate(recipe.train.total_steps());
  }
  void after_step(Trainer&, const StepResult& r) override {
    losses.push_back(r.loss);
    norms.push_back(r.grad_norm);
  }
  std::vector<double> losses, norms;
  EvalResult after;
};

void expect_golden(const Trained& run) {
  const std::vector<double> losses = numbers("losses"), norms = numbers("gradient_norms");
  ASSERT_EQ(run.losses.size(), losses.size());
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_NEAR(run.losses[i] / losses[i], 1, 1e-5) << "step " << i;
    // Adam turns the rounding of elements that are nearly zero into steps; norms see it before losses do.
    EXPECT_NEAR(run.norms[i] / norms[i], 1, 5e-5) << "step " << i;
  }
  EXPECT_EQ(run.after.counted_tokens, golden()["targets"].get<int64_t>());
  EXPECT_NEAR(run.after.loss / golden()["loss_after"].get<double>(), 1, 1e-5);
}

TEST(Sft, ConversationsBecomeTheTokensAndTargetsOfTransformers) {
  const Recipe r = recipe({});
  const InstructionData data =
      open_instructions(r.data, load_tokenizer(r.data.tokenizer), {.vocab_size = r.model.vocab_size});
  ASSERT_EQ(data.validation->size(), 8);
  for (int64_t row = 0; row < 8; ++row) {
    const auto ids = golden()["ids"][static_cast<size_t>(row)].get<std::vector<int32_t>>(),
               labels = golden()["labels"][static_cast<size_t>(row)].get<std::vector<int32_t>>();
    const auto tokens = data.validation->tokens(row);
    EXPECT_EQ(std::vector<int32_t>(tokens.begin(), tokens.end()), ids) << row;
    const auto trained = data.validation->trained(row);
    ASSERT_EQ(trained.size(), labels.size()) << row;
    for (size_t i = 0; i < labels.size(); ++i) EXPECT_EQ(trained[i] != 0, labels[i] >= 0) << row << " " << i;
  }
}

TEST(Sft, StepsAreThoseOfAPlainLoopOfPyTorch) { expect_golden(Trained(recipe({}))); }

TEST(Sft, PackedRowsTrainAsRowsAlone) {
  // The eight rows fill six sequences, whatever their order.
  expect_golden(
      Trained(recipe({"data.packing=true", "train.global_batch_tokens=372", "train.micro_batch_size=3"})));
}

}  // namespace
