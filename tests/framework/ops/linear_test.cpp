#include "framework/ops/linear.h"

#include <gtest/gtest.h>

#include "framework/ops/pack_cache.h"
#include "tests/support/op_case.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr auto parameter = OpInput::Kind::parameter;

// x (N, in) and weights (out_i, in) side by side in plain loops.
Values plain_linear(const std::vector<Values>& v, int64_t in, const std::vector<int64_t>& outs) {
  const int64_t rows = static_cast<int64_t>(v[0].size()) / in;
  Values y;
  for (int64_t r = 0; r < rows; ++r)
    for (size_t w = 0; w < outs.size(); ++w)
      for (int64_t o = 0; o < outs[w]; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < in; ++i)
          sum += v[0][static_cast<size_t>(r * in + i)] * v[w + 1][static_cast<size_t>(o * in + i)];
        y.push_back(sum);
      }
  return y;
}

void check(int64_t rows, int64_t in, const std::vector<int64_t>& outs) {
  std::vector<OpInput> inputs = {{.shape = {rows, in}}};
  for (int64_t o : outs) inputs.push_back({.shape = {o, in}, .kind = parameter, .scale = 0.3});
  check_op({.name = fmt::format("linear {}x{} to {}", rows, in, outs.size()),
            .inputs = inputs,
            .build =
                [](Tape& t, const std::vector<Var>& v) {
                  std::vector<Parameter*> weights;
                  for (size_t i = 1; i < v.size(); ++i) weights.push_back(t.parameter(v[i]));
                  return linear(t, v[0], weights);
                },
            .oracle = [=](const std::vector<Values>& v) { return plain_linear(v, in, outs); }});
}

}  // namespace

TEST(LinearOp, PassesTheOpCase) {
  check(5, 8, {6});
  check(33, 7, {3, 5});
  check(66, 64, {64, 32, 32});
}

TEST(LinearOp, SeesAWeightThatWasWrittenAndNothingElse) {
  TestBed bed;
  Parameter& w = bed.params.add("w", 0, {64, 64}, {});
  bed.params.materialize(bed.queue.device, DType::bf16, ParamStore::Gradients::on);
  const Values values = random_values("w", 64 * 64, DType::bf16),
               x_values = random_values("x", 64, DType::bf16);
  write(w.value, values);
  const Tensor x = make(bed.inputs, {1, 64}, DType::bf16, x_values);
  const auto forward = [&] {
    const Values y = read(bed.tape.value(linear(bed.tape, bed.tape.input(x), w)));
    bed.tape.reset();
    return y;
  };
  const Values before = forward();
  EXPECT_LT(relative_error(before, plain_linear({x_values, values}, 64, {64})), 1e-2);
  Values doubled = values;
  for (double& v : doubled) v *= 2;
  write(w.value, doubled);
  ++w.version;
  Values twice = before;
  for (double& v : twice) v *= 2;
  EXPECT_EQ(forward(), twice);
}

TEST(LinearOp, BooksItsPacksOnMeta) {
  const Queue meta{.device = {DeviceKind::meta}, .threads = 1};
  ParamStore planned, real;
  for (ParamStore* store : {&planned, &real}) {
    const bool plan = store == &planned;
    const Queue queue = plan ? meta : Queue{.device = {}, .threads = 1};
    Parameter& w = store->add("w", 0, {70, 64}, {});
    store->materialize(queue.device, DType::bf16, ParamStore::Gradients::on);
    Arena arena("activations", queue.device, 1 << 20);
    Pool pool("gradients", queue.device);
    Tape tape(queue, arena, pool);
    const Tensor x = arena.alloc({4, 64}, DType::bf16);
    if (!plan) memset(x.data, 0, static_cast<size_t>(x.bytes()));
    linear(tape, tape.input(x), w);
  }
  EXPECT_EQ(packed_bytes(planned), packed_bytes(real));
}
