#include "framework/tape/tape.h"

#include <gtest/gtest.h>

#include "framework/ops/pointwise.h"
#include "framework/ops/rmsnorm.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

/// A small residual block: x + swiglu([norm(x) | norm(x)])-like arithmetic without a matmul.
struct Block {
  Parameter *w1, *w2;
  Var operator()(Tape& t, Var x) const {
    const Var h = rmsnorm(t, x, t.leaf(*w1), 1e-6f);
    const Var g = rmsnorm(t, add(t, h, x), t.leaf(*w2), 1e-6f);
    return add(t, x, g);
  }
};

struct Stack {
  explicit Stack(int layers, int threads = 2) : bed(threads) {
    for (int l = 0; l < layers; ++l) {
      blocks.push_back(
          {&bed.params.add(fmt::format("layers.{}.a", l), l, {24}, {Init::Kind::constant, 1.0}),
           &bed.params.add(fmt::format("layers.{}.b", l), l, {24}, {Init::Kind::constant, 0.5})});
    }
    bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::on);
    bed.params.initialize(bed.queue, 1);
    x = make(bed.inputs, {16, 24}, DType::f32, random_values("x", 16 * 24, DType::f32));
    dy = make(bed.inputs, {16, 24}, DType::f32, random_values("dy", 16 * 24, DType::f32));
  }
  Values run() {  // gradients of x and of all parameters
    bed.params.begin_step();
    const Var in = bed.tape.source(x);
    Var h = in;
    for (int l = 0; l < static_cast<int>(blocks.size()); ++l)
      h = bed.tape.layer(l, h, blocks[static_cast<size_t>(l)]);
    bed.tape.backward_from(h, dy);
    Values all = read(bed.tape.gradient_of(in));
    for (const auto& p : bed.params.all())
      if (p->grad_written)
        for (double g : read(p->grad)) all.push_back(g);
    bed.tape.reset();
    return all;
  }
  TestBed bed;
  std::vector<Block> blocks;
  Tensor x, dy;
};

struct Order : LayerHook {
  std::vector<int> seen;
  void after_backward(int layer) override { seen.push_back(layer); }
};

}  // namespace

TEST(Tape, RecomputedBlocksGiveTheSameBitsAndLessMemory) {
  Stack plain(6), replayed(6);
  replayed.bed.tape.set_recompute(Recompute::block);
  EXPECT_EQ(plain.run(), replayed.run());
  EXPECT_LT(replayed.bed.arena.high_water_bytes(), plain.bed.arena.high_water_bytes());
}

TEST(Tape, TellsTheHookWhenALayersGradientsAreComplete) {
  for (Recompute r : {Recompute::none, Recompute::block}) {
    Stack s(3);
    Order order;
    s.bed.tape.set_layer_hook(&order);
    s.bed.tape.set_recompute(r);
    s.run();
    EXPECT_EQ(order.seen, (std::vector<int>{2, 1, 0, -1}));
  }
}

TEST(Tape, ReturnsAllMemoryAndMakesNoNewBuffersInTheSecondStep) {
  Stack s(4);
  s.run();
  const int64_t pool = s.bed.pool.high_water_bytes(), arena = s.bed.arena.high_water_bytes();
  EXPECT_EQ(s.bed.arena.used_bytes(), 0);
  for (int i = 0; i < 3; ++i) s.run();
  EXPECT_EQ(s.bed.pool.high_water_bytes(), pool);
  EXPECT_EQ(s.bed.arena.high_water_bytes(), arena);
}

TEST(Tape, AFrozenPrefixKeepsNoActivations) {
  Stack s(4);
  const Values all = s.run();
  for (int l = 0; l < 3; ++l)
    s.blocks[static_cast<size_t>(l)].w1->trainable = s.blocks[static_cast<size_t>(l)].w2->trainable = false;
  s.bed.params.begin_step();
  Var h = s.bed.tape.input(s.x);
  for (int l = 0; l < 4; ++l) h = s.bed.tape.layer(l, h, s.blocks[static_cast<size_t>(l)]);
  s.bed.tape.backward_from(h, s.dy);
  for (const auto& p : s.bed.params.all()) EXPECT_EQ(p->grad_written, p->layer == 3) << p->name;
  s.bed.tape.reset();
}

TEST(Tape, EvaluationLeavesNoRecordAndFreesEachLayer) {
  Stack s(8);
  s.bed.tape.set_mode(Tape::Mode::evaluate);
  Var h = s.bed.tape.input(s.x);
  int64_t after_one = 0;
  for (int l = 0; l < 8; ++l) {
    h = s.bed.tape.layer(l, h, s.blocks[static_cast<size_t>(l)]);
    if (l == 0) after_one = s.bed.arena.used_bytes();
  }
  EXPECT_FALSE(s.bed.tape.needs_grad(h));
  EXPECT_LE(s.bed.arena.used_bytes(), 8 * after_one);
  s.bed.tape.reset();
}

TEST(Tape, PlansOnMetaWhatARunUses) {
  Stack real(5);
  real.run();
  Queue meta{.device = {DeviceKind::meta, 0}, .threads = 1};
  Arena arena("activations", meta.device, 0);
  Pool pool("activation gradients", meta.device);
  Tape tape(meta, arena, pool);
  tape.set_mode(Tape::Mode::train);
  ParamStore params;
  std::vector<Block> blocks;
  for (int l = 0; l < 5; ++l)
    blocks.push_back(
        {&params.add(fmt::format("{}a", l), l, {24}, {}), &params.add(fmt::format("{}b", l), l, {24}, {})});
  params.materialize(meta.device, DType::f32, ParamStore::Gradients::on);
  Var h = tape.source(make_tensor(nullptr, {16, 24}, DType::f32, meta.device));
  for (int l = 0; l < 5; ++l) h = tape.layer(l, h, blocks[static_cast<size_t>(l)]);
  tape.backward_from(h, make_tensor(nullptr, {16, 24}, DType::f32, meta.device));
  EXPECT_EQ(pool.high_water_bytes(), real.bed.pool.high_water_bytes());
  EXPECT_LE(arena.high_water_bytes(), real.bed.arena.high_water_bytes());  // the real one has guard zones
}
