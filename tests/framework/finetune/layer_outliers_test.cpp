#include "framework/finetune/layer_outliers.h"

#include <gtest/gtest.h>

#include <array>

#include "framework/ops/linear.h"
#include "tests/support/test_bed.h"

namespace osprey {
namespace {

using test::make;
using test::TestBed;
using test::Values;

/// A layer of two weights that read one input, and a third that reads what the first two give.
struct Block {
  std::array<Parameter*, 2> stacked{};
  Parameter* last = nullptr;
  Var operator()(Tape& t, Var x) const {
    linear(t, x, stacked);
    return linear(t, x, *last);
  }
};

TEST(LayerOutliers, CountsProductsAboveTheMeanOfTheWholeBlockInPercent) {
  TestBed bed;
  bed.tape.set_mode(Tape::Mode::evaluate);
  Block block;
  block.stacked = {&bed.params.add("layers.0.a", 0, {2, 2}, {}),
                   &bed.params.add("layers.0.b", 0, {1, 2}, {})};
  block.stacked[1]->first_of_input = block.stacked[0];
  block.last = &bed.params.add("layers.0.c", 0, {2, 2}, {});
  bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::off);
  test::write(block.stacked[0]->value, {1, -1, 2, 1});
  test::write(block.stacked[1]->value, {-8, 1});
  test::write(block.last->value, {1, 1, 1, 1});
  LayerOutliers outliers(bed.tape);
  // Columns of norm 5 and 2 over both batches, so |w| |x|: 5 2 10 2 | 40 2 | 5 2 5 2, mean 7.5.
  for (const Values& x : {Values{3, 2, 0, 0}, Values{0, 0, 4, 0}}) {
    bed.tape.layer(0, bed.tape.input(make(bed.inputs, {2, 2}, DType::f32, x)), block);
    bed.tape.reset();
  }
  const auto score = [&](double threshold) { return outliers.scores(bed.params, threshold).at(0); };
  EXPECT_EQ(score(1), 20);                // 10 and 40
  EXPECT_EQ(score(4.0 / 3), 10);          // 10 is not above 10
  EXPECT_NEAR(score(1.3333), 20, 1e-12);  // but above 9.99975
  EXPECT_EQ(score(6), 0);
}

}  // namespace
}  // namespace osprey
