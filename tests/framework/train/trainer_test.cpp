#include "framework/train/trainer.h"

#include <gtest/gtest.h>

#include "framework/parallel/thread_comm.h"
#include "tests/framework/train/toy_trainer.h"

namespace osprey {
namespace {

using test::ToyTrainer;

TEST(Trainer, EvaluationSaysHowFarItsLossWouldMoveWithOtherData) {
  ToyTrainer toy;  // 3 5 4 8 1 2, one sequence a round
  const EvalResult r = toy.trainer->evaluate(4);
  EXPECT_EQ(r.counted_tokens, 48);
  EXPECT_NEAR(r.loss, 23.0 / 6, 1e-12);
  double squares = 0;
  for (const int32_t loss : toy.losses) squares += (loss - r.loss) * (loss - r.loss);
  ASSERT_TRUE(r.standard_error.has_value());
  EXPECT_NEAR(*r.standard_error, std::sqrt(squares / 5 / 6), 1e-9);  // s / sqrt(n)
}

TEST(Trainer, RoundsThatAreNotFullCountByTheirTokens) {
  ToyTrainer toy({3, 5, 4, 8, 1}, nullptr, 2);  // rounds of means 4, 6, 1 with weights 2, 2, 1
  const EvalResult r = toy.trainer->evaluate(4);
  EXPECT_NEAR(r.loss, 21.0 / 5, 1e-12);
  const double residuals = std::pow(2 * (4 - 4.2), 2) + std::pow(2 * (6 - 4.2), 2) + std::pow(1 - 4.2, 2);
  EXPECT_NEAR(*r.standard_error, std::sqrt(residuals * 3 / 2) / 5, 1e-9);
}

TEST(Trainer, OneRoundTellsNoStandardError) {
  ToyTrainer toy({3, 5}, nullptr, 2);
  const EvalResult r = toy.trainer->evaluate(4);
  EXPECT_NEAR(r.loss, 4, 1e-12);
  EXPECT_FALSE(r.standard_error.has_value());
}

TEST(Trainer, RoundsOfAllRanksAreTheUnits) {
  const EvalResult one = ToyTrainer().trainer->evaluate(4);
  run_thread_ranks(3, [&](Communicator& world) {
    ToyTrainer toy({3, 5, 4, 8, 1, 2}, &world);
    const EvalResult r = toy.trainer->evaluate(4);
    EXPECT_NEAR(r.loss, one.loss, 1e-12);
    EXPECT_NEAR(*r.standard_error, *one.standard_error, 1e-12);
  });
}

}  // namespace
}  // namespace osprey
