#include "launch/bench/allocations.h"

#include <gtest/gtest.h>

#include <memory>

#include "kernels/linear.h"
#include "models/llama/llama.h"
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
    const auto model = make_llama(spec, 16);
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
    int64_t counts[3];
    for (int64_t& count : counts) {
      const int64_t before = allocations();
      bed.params.begin_step();
      LossSum sum;
      bed.tape.backward(model->loss(bed.tape, batch, 1.0f / 32, sum, {}));
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
