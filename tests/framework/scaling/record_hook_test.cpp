#include "framework/scaling/record_hook.h"

#include <gtest/gtest.h>

#include "framework/files/file.h"
#include "tests/framework/scaling/example_record.h"
#include "tests/framework/train/toy_trainer.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using namespace test;

RunRecord known() {
  RunRecord r = example_record("watched");
  r.validation_loss = r.validation_standard_error = r.train_loss = {};
  r.validation_tokens = r.train_loss_steps = 0;
  return r;
}

StepResult at(int64_t step, double loss, int64_t total = 4) {
  StepResult r;
  r.step = step, r.total_steps = total, r.loss = loss;
  return r;
}

/// One process of a run: steps with these losses, an evaluation, the end.
void run(const std::filesystem::path& file, ToyTrainer& toy, const std::vector<double>& losses,
         double validation, RunRecord record = known()) {
  RecordHook hook(file, std::move(record), *toy.world);
  const int64_t total = static_cast<int64_t>(losses.size());
  for (int64_t step = 1; step <= total; ++step)
    hook.after_step(*toy.trainer, at(step, losses[static_cast<size_t>(step - 1)], total));
  EvalResult eval;
  eval.loss = validation, eval.counted_tokens = 64, eval.standard_error = 0.25;
  hook.after_eval(*toy.trainer, eval);
  hook.on_end(*toy.trainer, at(total, losses.back(), total));
}

TEST(RecordHook, AFinishedRunIsRecordedWithItsLosses) {
  const TempDir dir;
  ToyTrainer toy;
  std::vector<double> losses(100, 9.0);
  losses[98] = 3, losses[99] = 2;
  run(dir / "s.jsonl", toy, losses, 2.75);
  const auto records = read_records(dir / "s.jsonl");
  ASSERT_EQ(records.size(), 1u);
  RunRecord expected = known();
  expected.validation_loss = 2.75, expected.validation_standard_error = 0.25, expected.validation_tokens = 64;
  expected.train_loss = 2.5, expected.train_loss_steps = 2;
  EXPECT_EQ(records[0], expected);
}

TEST(RecordHook, AFinishedRunThatIsStartedAgainStandsThereOnce) {
  const TempDir dir;
  ToyTrainer toy;
  run(dir / "s.jsonl", toy, {3, 2}, 2.75);
  RecordHook again(dir / "s.jsonl", known(), *toy.world);
  again.on_end(*toy.trainer, at(2, 0, 2));
  RunRecord expected = known();
  expected.validation_loss = 2.75, expected.validation_standard_error = 0.25, expected.validation_tokens = 64;
  expected.train_loss = 2.0, expected.train_loss_steps = 1;
  EXPECT_EQ(read_file(dir / "s.jsonl", 1 << 20), line_of(expected));
}

TEST(RecordHook, ARecordThatIsMissingIsMadeUpForByAnEvaluation) {
  const TempDir dir;
  ToyTrainer toy;
  append_record(dir / "s.jsonl", example_record("other"));
  RecordHook hook(dir / "s.jsonl", known(), *toy.world);
  hook.on_end(*toy.trainer, at(4, 0));
  const auto records = read_records(dir / "s.jsonl");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].run, "watched");
  EXPECT_NEAR(*records[1].validation_loss, toy.mean_loss(), 1e-12);
  EXPECT_FALSE(records[1].train_loss.has_value());
}

TEST(RecordHook, AStoppedRunIsNotRecorded) {
  const TempDir dir;
  ToyTrainer toy;
  RecordHook hook(dir / "s.jsonl", known(), *toy.world);
  hook.after_step(*toy.trainer, at(3, 2.0));
  hook.on_end(*toy.trainer, at(3, 2.0));
  EXPECT_FALSE(std::filesystem::exists(dir / "s.jsonl"));
}

TEST(RecordHook, ALossThatIsNotFiniteIsLeftOut) {
  const TempDir dir;
  ToyTrainer toy;
  run(dir / "s.jsonl", toy, {3, NAN}, INFINITY);
  const auto records = read_records(dir / "s.jsonl");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_FALSE(records[0].validation_loss.has_value());
  EXPECT_FALSE(records[0].validation_standard_error.has_value());
  EXPECT_FALSE(records[0].train_loss.has_value());
}

}  // namespace
}  // namespace osprey
