#include "framework/ops/rope.h"

#include <gtest/gtest.h>

#include "framework/ops/pointwise.h"
#include "kernels/pointwise.h"
#include "tests/oracle/rope.h"
#include "tests/support/op_case.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr auto parameter = OpInput::Kind::parameter;

/// rope works in place, and an op case runs twice on the same inputs.
Var fresh(Tape& t, Var x) {
  const Tensor y = t.alloc(t.value(x).shape, t.value(x).dtype);
  kernels::copy(t.queue(), {.y = y, .x = t.value(x)});
  return t.record("fresh", y, {x}, [=, &t](Tensor dy) { t.pass_grad(x, dy); });
}

struct Shapes {
  int64_t rows, heads, kv_heads, head_size;
  int64_t cols() const { return (heads + 2 * kv_heads) * head_size; }
};

std::vector<int> positions_of(const Shapes& s) {
  std::vector<int> p;
  for (int64_t r = 0; r < s.rows; ++r) p.push_back(static_cast<int>(r * 7 % 31));
  return p;
}

OpCase rope_case(const Shapes& s, bool q_norm, bool k_norm) {
  OpCase op;
  op.name = fmt::format("rope {}x({}+2*{})x{}{}{}", s.rows, s.heads, s.kv_heads, s.head_size,
                        q_norm ? " q_norm" : "", k_norm ? " k_norm" : "");
  op.inputs = {{.shape = {s.rows, s.cols()}, .scale = 1.5}};
  for (int i = 0; i < q_norm + k_norm; ++i)
    op.inputs.push_back({.shape = {s.head_size}, .kind = parameter, .scale = 0.3, .offset = 1});
  op.build = [=](Tape& t, const std::vector<Var>& v) {
    const Tensor positions = make_i32(t.arena(), {s.rows}, positions_of(s));
    const RopeArgs args{.heads = s.heads,
                        .kv_heads = s.kv_heads,
                        .head_size = s.head_size,
                        .theta = 500,
                        .eps = 1e-5f,
                        .positions = positions};
    return rope(t, fresh(t, v[0]), args, q_norm ? v[1] : Var{}, k_norm ? v[q_norm ? 2 : 1] : Var{});
  };
  op.oracle = [=](const std::vector<Values>& v) {
    const auto heads = static_cast<size_t>(s.heads);
    return oracle::rope(v[0], static_cast<size_t>(s.cols()), static_cast<size_t>(s.heads + s.kv_heads),
                        static_cast<size_t>(s.head_size), positions_of(s), 500, 1e-5,
                        [&](size_t h) -> const Values* {
                          if (h < heads) return q_norm ? &v[1] : nullptr;
                          return k_norm ? &v[q_norm ? 2 : 1] : nullptr;
                        });
  };
  return op;
}

}  // namespace

TEST(Rope, PassesTheOpCase) {
  for (const Shapes& s : {Shapes{1, 1, 1, 8}, {130, 2, 1, 24}, {67, 2, 2, 64}})
    check_op(rope_case(s, false, false));
}

TEST(Rope, WithQkNormPassesTheOpCase) {
  check_op(rope_case({50, 3, 1, 16}, true, true));
  check_op(rope_case({1, 1, 1, 40}, true, true));
  check_op(rope_case({90, 2, 2, 32}, true, false));
  check_op(rope_case({40, 2, 2, 64}, false, true));
}

TEST(Rope, DoesNotTouchAGradientThatAnotherOpReads) {
  // y = rope(x), z = y + y': the sum hands one buffer to both sides, and rope must not turn it in
  // place.
  TestBed bed;
  const Shapes s{6, 1, 1, 8};
  const OpCase op = rope_case(s, false, false);
  const Tensor x =
      make(bed.inputs, {s.rows, s.cols()}, DType::f32, random_values("x", s.rows * s.cols(), DType::f32));
  const Tensor other =
      make(bed.inputs, {s.rows, s.cols()}, DType::f32, Values(static_cast<size_t>(s.rows * s.cols()), 0.5));
  const Values dy = random_values("dy", s.rows * s.cols(), DType::f32);
  const Var vx = bed.tape.source(x), v_other = bed.tape.source(other);
  const Var z = add(bed.tape, op.build(bed.tape, {vx}), v_other);
  bed.tape.backward_from(z, make(bed.inputs, {s.rows, s.cols()}, DType::f32, dy));
  EXPECT_EQ(read(bed.tape.gradient_of(v_other)), dy);
  EXPECT_NE(read(bed.tape.gradient_of(vx)), dy);
  bed.tape.reset();
}

TEST(Rope, RefusesBadPositionsAndShapes) {
  TestBed bed;
  const Tensor x = make(bed.inputs, {2, 24}, DType::f32, Values(48, 1.0));
  RopeArgs args{.heads = 1, .kv_heads = 1, .head_size = 8, .positions = make_i32(bed.inputs, {2}, {0, -1})};
  if (test_device().kind == DeviceKind::cpu) {  // a GPU does not ask what positions are
    EXPECT_THROW(rope(bed.tape, bed.tape.input(x), args, {}, {}), Error);
  }
  args.positions = make_i32(bed.inputs, {3}, {0, 1, 2});
  EXPECT_THROW(rope(bed.tape, bed.tape.input(x), args, {}, {}), Error);
  args.positions = make_i32(bed.inputs, {2}, {0, 1});
  args.heads = 2;
  EXPECT_THROW(rope(bed.tape, bed.tape.input(x), args, {}, {}), Error);
}
