#include "launch/bench/allocations.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/linear.h"
#include "kernels/step_control.h"
#include "models/make_model.h"
#include "optim/muon.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

TEST(Allocations, AreCounted) {
  const int64_t before = allocations();
  auto p = std::make_unique<int>(3);
  EXPECT_EQ(allocations(), before + 1);
  EXPECT_EQ(*p, 3);
}

TEST(Allocations, AStepOfTheModelMakesNoneAfterTheFirst) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    TestBed bed;
    ModelSpec spec;
    spec.layers = 2;
    spec.hidden_size = 64;
    spec.heads = 2;
    spec.ffn_size = 96;
    spec.vocab_size = 128;
    const auto model = make_model(spec, 16);
    model->declare(bed.params);
    bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
    bed.params.initialize(bed.queue, 1);
    BatchView batch;
    for (Tensor* t : {&batch.tokens, &batch.targets, &batch.positions})
      *t = bed.inputs.alloc({2, 16}, DType::i32);
    for (int i = 0; i < 32; ++i) {
      batch.tokens.as<int32_t>()[i] = i;
      batch.targets.as<int32_t>()[i] = i + 1;
      batch.positions.as<int32_t>()[i] = i % 16;
    }
    const Tensor sums = bed.zeros(2), grad_scale = make(bed.inputs, {1}, DType::f64, {1.0 / 32});
    int64_t counts[3];
    for (int64_t& count : counts) {
      const int64_t before = allocations();
      bed.params.begin_step();
      bed.tape.backward(model->loss(bed.tape, batch, {.grad_scale = grad_scale, .sums = sums}));
      bed.tape.reset();
      for (const auto& p : bed.params.all()) ++p->version;
      count = allocations() - before;
    }
    EXPECT_GT(counts[0], 0) << "the counter does not count";
    // Other products go through oneDNN, which allocates a little for itself in every call.
    if (dtype == DType::bf16 &&
        kernels::linear_pack_bytes(bed.queue, {&bed.params.at("head.weight").value, 1},
                                   kernels::PackFor::forward) > 0) {
      EXPECT_EQ(counts[2], 0) << name(dtype);
    }
  }
}

TEST(Allocations, AMuonStepMakesNoneAfterTheFirst) {
  for (int threads : {1, 2}) {
    TestBed bed(threads);
    // Both orientations, a Gram side of odd length, and one with more than one panel.
    const Shape shapes[] = {{64, 96}, {200, 130}, {33, 70}};
    for (int64_t i = 0; i < 3; ++i)
      bed.params.add(fmt::format("layers.{}.attn.q.weight", i), -1, shapes[i], {Init::Kind::normal, 0.02});
    bed.params.materialize(bed.queue.device, DType::bf16, ParamStore::Gradients::on);
    bed.params.initialize(bed.queue, 1);
    const Muon muon({});
    std::vector<ParamPiece> pieces;
    for (const auto& p : bed.params.all()) {
      ParamPiece piece{.name = p->name,
                       .full_shape = p->shape,
                       .end = p->shape.numel(),
                       .value = p->value,
                       .grad = p->grad};
      piece.master = bed.inputs.alloc(p->shape, DType::f32);
      piece.state[0] = bed.inputs.alloc(p->shape, DType::f32);
      for (int64_t i = 0; i < p->shape.numel(); ++i) {
        piece.master.as<float>()[i] = to_float(p->value.as<bf16>()[i]);
        piece.grad.as<float>()[i] = random_normal(1, 2, static_cast<uint64_t>(i));
        piece.state[0].as<float>()[i] = 0;
      }
      pieces.push_back(piece);
    }
    const Tensor workspace = bed.inputs.alloc({muon.workspace_bytes(bed.queue, pieces) / 4 + 16}, DType::f32);
    Values scalars(kernels::step_scalars, 0.0);
    scalars[kernels::step_learning_rate_factor] = scalars[kernels::step_grad_scale] =
        scalars[kernels::step_apply] = 1;
    const Tensor control = make(bed.inputs, {kernels::step_scalars}, DType::f64, scalars);
    int64_t counts[3];
    for (int64_t& count : counts) {
      const int64_t before = allocations();
      const StepInfo info{.control = control, .workspace = workspace};
      muon.step(bed.queue, pieces, info);                           // a thread takes whole matrices
      muon.step(bed.queue, std::span(pieces).subspan(1, 1), info);  // threads share one
      count = allocations() - before;
    }
    // As above: oneDNN's own allocations are not ours to judge.
    if (kernels::linear_pack_bytes(bed.queue, {&bed.params.all()[0]->value, 1}, kernels::PackFor::forward) >
        0) {
      EXPECT_EQ(counts[2], 0) << threads << " threads";
    }
  }
}
