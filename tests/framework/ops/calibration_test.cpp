#include "framework/ops/calibration.h"

#include <gtest/gtest.h>

#include "framework/ops/linear.h"
#include "framework/parallel/thread_comm.h"
#include "kernels/device.h"
#include "tests/support/refusal.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr int64_t rows = 64, in = 64, outs[] = {96, 32}, all = 128;

QuantGroupSpec group(QuantGroupSpec::Rotate rotate, int64_t rotation, int64_t backward_rotation) {
  QuantGroupSpec g;
  g.weights = g.activations = QuantOperandSpec{};
  g.gradients = QuantOperandSpec{};
  g.rotation = rotation;
  g.backward_rotation = backward_rotation;
  g.rotate = rotate;
  g.calibration_steps = 3;
  return g;
}
constexpr auto measured = QuantGroupSpec::Rotate::measured, always = QuantGroupSpec::Rotate::always;

struct Result {
  Values y, dx;
  std::array<Values, 2> dw;
  bool operator==(const Result&) const = default;
};

/// A layer of two stacked weights; x has an outlier column, the second weight and dy an outlier row.
struct Layer {
  TestBed bed;
  std::unique_ptr<Communicator> world = make_self_comm();
  std::unique_ptr<QuantSchemes> schemes;
  std::array<Parameter*, 2> weights{};
  Tensor x, dy;

  explicit Layer(const std::vector<QuantGroupSpec>& groups) {
    const char* names[] = {"layers.0.attn.q.weight", "layers.0.attn.k.weight"};
    for (size_t i = 0; i < 2; ++i) weights[i] = &bed.params.add(names[i], 0, {outs[i], in}, {});
    weights[1]->first_of_input = weights[0];
    bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::on);
    for (size_t i = 0; i < 2; ++i) {
      Values w = random_values(names[i], outs[i] * in, DType::f32, 0.1);
      if (i == 1)
        for (size_t c = 0; c < in; ++c) w[7 * in + c] *= 20;
      write(weights[i]->value, w);
    }
    Values xs = random_values("x", rows * in, DType::f32), dys = random_values("dy", rows * all, DType::f32);
    for (size_t r = 0; r < rows; ++r) xs[r * in + 5] *= 20;
    for (size_t c = 0; c < all; ++c) dys[9 * all + c] *= 20;
    x = make(bed.inputs, {rows, in}, DType::f32, xs);
    dy = make(bed.inputs, {rows, all}, DType::f32, dys);
    if (groups.empty()) return;
    schemes = std::make_unique<QuantSchemes>(groups, bed.params, 5);
    schemes->materialize(bed.queue);
  }
  Result run() {
    bed.params.begin_step();
    const Var vx = bed.tape.source(x), y = linear(bed.tape, vx, weights);
    Result r;
    r.y = read(bed.tape.value(y));
    bed.tape.backward_from(y, dy);
    r.dx = read(bed.tape.gradient_of(vx));
    bed.tape.reset();
    for (size_t i = 0; i < 2; ++i) r.dw[i] = read(weights[i]->grad);
    bed.arena.check_guards();
    return r;
  }
};

/// The layer's result when `rotated` was decided.
Result decided_as(const RotatedProducts& rotated) {
  Layer layer({group(measured, 32, 32)});
  const LayerPatterns state[] = {
      {.weight = "layers.0.attn.q.weight", .x = {0, 0, 3}, .decided = true, .rotated = rotated}};
  layer.schemes->decide_as(state);
  layer.schemes->activate(3);
  return layer.run();
}
Result with(int64_t rotation, int64_t backward_rotation) {
  Layer layer({group(always, rotation, backward_rotation)});
  layer.schemes->activate(0);
  return layer.run();
}

}  // namespace

TEST(Calibration, ComputesThePlainLayerAndCountsEachBackwardOnce) {
  Layer plain({}), layer({group(measured, 32, 32)});
  const Result expected = plain.run();
  layer.schemes->activate(0);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(layer.run(), expected);
  const std::vector<LayerPatterns> found = layer.schemes->patterns(layer.bed.queue, *layer.world);
  ASSERT_EQ(found.size(), 1u) << "weights of one input are one layer";
  EXPECT_EQ(found[0].weight, "layers.0.attn.q.weight");
  EXPECT_EQ(found[0].x, (PatternVotes{0, 2, 0}));
  EXPECT_EQ(found[0].w, (PatternVotes{2, 0, 0}));
  EXPECT_EQ(found[0].dy, (PatternVotes{2, 0, 0}));
  EXPECT_FALSE(found[0].decided);
  // Nothing is counted without a backward.
  layer.bed.tape.set_mode(Tape::Mode::evaluate);
  linear(layer.bed.tape, layer.bed.tape.input(layer.x), layer.weights);
  layer.bed.tape.reset();
  EXPECT_EQ(layer.schemes->patterns(layer.bed.queue, *layer.world), found);
}

TEST(Calibration, RotatesTheProductsThatWereDecidedAndNoOthers) {
  const Result none = with(0, 0), forward = with(32, 0), backward = with(0, 32), both = with(32, 32);
  EXPECT_EQ(decided_as({false, false, false}), none);
  EXPECT_EQ(decided_as({true, false, false}), forward);
  EXPECT_EQ(decided_as({false, true, true}), backward);
  EXPECT_EQ(decided_as({true, true, true}), both);
  const Result dw = decided_as({false, true, false}), dx = decided_as({false, false, true});
  EXPECT_EQ(dw.dw, backward.dw);
  EXPECT_EQ(dw.dx, none.dx);
  EXPECT_EQ(dx.dw, none.dw);
  EXPECT_EQ(dx.dx, backward.dx);
  EXPECT_NE(none.dw, backward.dw);
  EXPECT_NE(none.dx, backward.dx);
}

TEST(Calibration, ALayerThatNothingWasDecidedForIsRefused) {
  Layer layer({group(measured, 32, 32)});
  layer.schemes->activate(3);
  EXPECT_NE(
      refusal([&] { layer.run(); }).find("layers.0.attn.q.weight is to be rotated as a calibration decides"),
      std::string::npos);
}

TEST(Calibration, WeightsOfOneInputCalibrateTogether) {
  QuantGroupSpec q = group(measured, 32, 32), k = q;
  q.match = "layers.*.attn.q.weight";
  k.match = "layers.*.attn.k.weight";
  Layer layer({q, k});
  layer.schemes->activate(0);
  EXPECT_NE(refusal([&] { layer.run(); }).find("belong to different groups"), std::string::npos);
}

TEST(Calibration, VotesOfAllRanksAreRestoredOnOne) {
  const std::vector<LayerPatterns> state = {
      {.weight = "layers.0.attn.q.weight", .x = {1, 2, 3}, .w = {6, 0, 0}, .dy = {0, 4, 2}}};
  for (int ranks : {1, 2})
    run_thread_ranks(ranks, [&](Communicator& world) {
      if (test_device().kind != DeviceKind::cpu && ranks > 1) return;  // ranks of one test share no GPU
      Layer layer({group(measured, 32, 32)});
      layer.schemes->restore(layer.bed.queue, world.rank(), state, 2);
      EXPECT_EQ(layer.schemes->patterns(layer.bed.queue, world), state);
    });
}

TEST(Calibration, ACheckpointThatDoesNotKnowTheLayersIsRefused) {
  Layer layer({group(measured, 32, 32)});
  const auto restore = [&](const std::vector<LayerPatterns>& state, int64_t step) {
    return refusal([&] { layer.schemes->restore(layer.bed.queue, 0, state, step); });
  };
  EXPECT_EQ(restore({}, 0), "accepted");
  EXPECT_NE(restore({}, 1).find("begin the group at step 1 or later"), std::string::npos);
  LayerPatterns other{.weight = "layers.7.attn.q.weight", .x = {0, 0, 1}};
  EXPECT_NE(restore({other}, 2).find("holds no such measurement"), std::string::npos);
  LayerPatterns open{.weight = "layers.0.attn.q.weight", .x = {0, 0, 1}}, over = open;
  over.decided = true;
  EXPECT_EQ(restore({open}, 3), "accepted") << "it is decided before step 3";
  EXPECT_NE(restore({open}, 4).find("holds no such measurement"), std::string::npos);
  EXPECT_EQ(restore({over}, 4), "accepted");
}
