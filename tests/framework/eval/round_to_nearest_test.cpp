#include "framework/eval/round_to_nearest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "framework/ops/linear.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

/// One linear layer inside a block and one outside.
struct Layers {
  Layers() {
    bed.tape.set_mode(Tape::Mode::evaluate);
    inside = &bed.params.add("layers.0.mlp.up.weight", 0, {6, 24}, {Init::Kind::normal, 1.0});
    outside = &bed.params.add("head.weight", -1, {6, 24}, {Init::Kind::normal, 1.0});
    bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::off);
    bed.params.initialize(bed.queue, 4);
    x = make(bed.inputs, {5, 24}, DType::f32, random_values("x", 5 * 24, DType::f32));
  }
  Values forward(Parameter& weight) {
    const Values y = read(bed.tape.value(linear(bed.tape, bed.tape.input(x), weight)));
    bed.tape.reset();
    return y;
  }
  TestBed bed;
  Parameter *inside, *outside;
  Tensor x;
};

size_t levels(const Tensor& t, int64_t row) {
  const Values v = read(t.row_range(row, row + 1));
  return std::set<double>(v.begin(), v.end()).size();
}

}  // namespace

TEST(IntegerFormat, ReadsBitsAndRefusesTheRest) {
  const IntegerFormat f = parse_integer_format("w4a16");
  EXPECT_EQ(f.weight_bits, 4);
  EXPECT_FALSE(f.activation_bits.has_value());
  EXPECT_EQ(parse_integer_format("w8a6").activation_bits, 6);
  for (const char* wrong : {"", "w4", "a4w4", "w1a8", "w9a8", "w4a4x", "w4a-4", "w4 a4"})
    EXPECT_THROW(parse_integer_format(wrong), Error) << wrong;
}

TEST(QuantizedScope, RoundsWeightsInsideBlocksAndGivesThemBack) {
  Layers l;
  const Values inside = read(l.inside->value), outside = read(l.outside->value);
  const Values before = l.forward(*l.inside);
  {
    const QuantizedScope scope(l.bed.tape, l.bed.params, parse_integer_format("w2a16"),
                               kernels::ClipSearch::none);
    EXPECT_LE(levels(l.inside->value, 0), 4u);
    EXPECT_GT(relative_error(l.forward(*l.inside), before), 0.05);
    EXPECT_EQ(read(l.outside->value), outside);
  }
  EXPECT_EQ(read(l.inside->value), inside);
  EXPECT_EQ(l.forward(*l.inside), before);
}

TEST(QuantizedScope, RoundsActivationsInsideBlocksWhileItLives) {
  Layers l;
  const Values inside = l.forward(*l.inside), outside = l.forward(*l.outside);
  {
    const QuantizedScope scope(l.bed.tape, l.bed.params, parse_integer_format("w16a2"),
                               kernels::ClipSearch::none);
    EXPECT_GT(relative_error(l.forward(*l.inside), inside), 0.05);
    EXPECT_EQ(l.forward(*l.outside), outside);
    l.bed.tape.set_mode(Tape::Mode::train);  // training never sees it
    EXPECT_EQ(l.forward(*l.inside), inside);
    l.bed.tape.set_mode(Tape::Mode::evaluate);
  }
  EXPECT_EQ(l.forward(*l.inside), inside);
}

TEST(QuantizedScope, MoreBitsLoseLess) {
  Layers l;
  const Values exact = l.forward(*l.inside);
  double last = 1e9;
  for (const char* format : {"w2a2", "w4a4", "w6a6", "w8a8"}) {
    const QuantizedScope scope(l.bed.tape, l.bed.params, parse_integer_format(format),
                               kernels::ClipSearch::none);
    const double error = relative_error(l.forward(*l.inside), exact);
    EXPECT_LT(error, last) << format;
    EXPECT_GT(error, 0) << format;
    last = error;
  }
  EXPECT_LT(last, 0.02);
}
