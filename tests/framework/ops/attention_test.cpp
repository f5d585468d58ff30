#include "framework/ops/attention.h"

#include <gtest/gtest.h>

#include "tests/oracle/attention.h"
#include "tests/support/op_case.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr auto parameter = OpInput::Kind::parameter;
using Gate = oracle::Attention::Gate;

struct Variant {
  int64_t batch = 2, tokens = 10, heads = 2, kv_heads = 1, head_size = 16;
  std::optional<kernels::Clip> clip = {};
  bool sink = false;
  Gate gate = Gate::none;
  bool documents = false;
  int64_t window = 0;

  int64_t rows() const { return batch * tokens; }
  AttentionArgs args() const {
    return {.batch = batch,
            .heads = heads,
            .kv_heads = kv_heads,
            .head_size = head_size,
            .document_start = {},
            .clip = clip,
            .window = window};
  }
  std::vector<int> starts() const {
    std::vector<int> s;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < tokens; ++t) s.push_back(static_cast<int>(t < 4 ? 0 : 4));
    return s;
  }
  oracle::Attention oracle() const {
    oracle::Attention a{.batch = static_cast<size_t>(batch),
                        .tokens = static_cast<size_t>(tokens),
                        .heads = static_cast<size_t>(heads),
                        .kv_heads = static_cast<size_t>(kv_heads),
                        .head_size = static_cast<size_t>(head_size),
                        .scale = 1 / std::sqrt(static_cast<double>(head_size)),
                        .clipped = clip.has_value(),
                        .gate = gate};
    if (clip) a.zeta = static_cast<double>(clip->zeta), a.gamma = static_cast<double>(clip->gamma);
    if (documents) a.document_start = starts();
    a.window = static_cast<size_t>(window);
    return a;
  }
};

/// Columns of the fused buffer as the oracle wants them.
oracle::Attention::Inputs unfuse(const Variant& c, const Values& qkv) {
  const size_t h = static_cast<size_t>(c.heads * c.head_size),
               g = static_cast<size_t>(c.kv_heads * c.head_size);
  oracle::Attention::Inputs in;
  for (size_t r = 0; r < static_cast<size_t>(c.rows()); ++r) {
    const double* row = &qkv[r * (h + 2 * g)];
    in.q.insert(in.q.end(), row, row + h);
    in.k.insert(in.k.end(), row + h, row + h + g);
    in.v.insert(in.v.end(), row + h + g, row + h + 2 * g);
  }
  return in;
}

OpCase attention_case(const Variant& c) {
  OpCase op;
  op.name = fmt::format("attention B{} T{} H{} G{} D{}{}{} gate{}{}{}", c.batch, c.tokens, c.heads,
                        c.kv_heads, c.head_size, c.clip ? " clip" : "", c.sink ? " sink" : "",
                        static_cast<int>(c.gate), c.documents ? " documents" : "", c.window ? " window" : "");
  op.inputs = {{.shape = {c.rows(), (c.heads + 2 * c.kv_heads) * c.head_size}}};
  if (c.gate != Gate::none)
    op.inputs.push_back({.shape = {c.rows(), c.gate == Gate::headwise ? c.heads : c.heads * c.head_size}});
  if (c.sink) op.inputs.push_back({.shape = {c.heads}, .kind = parameter});
  op.build = [=](Tape& t, const std::vector<Var>& v) {
    AttentionArgs args = c.args();
    if (c.documents) args.document_start = make_i32(t.arena(), {c.batch, c.tokens}, c.starts());
    return attention(t, v[0], args, c.gate != Gate::none ? v[1] : Var{}, c.sink ? v.back() : Var{});
  };
  op.oracle = [=](const std::vector<Values>& v) {
    oracle::Attention::Inputs in = unfuse(c, v[0]);
    if (c.gate != Gate::none) in.gate = v[1];
    if (c.sink) in.sink = v.back();
    return c.oracle().forward(in).o;
  };
  op.f32_tolerance = 2e-5;
  op.bf16_tolerance = 2e-2;
  return op;
}

}  // namespace

TEST(AttentionOp, PassesTheOpCase) {
  check_op(attention_case({}));
  check_op(attention_case({.batch = 1, .tokens = 67, .heads = 1, .head_size = 8}));
  check_op(attention_case({.heads = 4, .kv_heads = 2, .documents = true}));
}

TEST(AttentionOp, PassesTheOpCaseInEveryVariant) {
  check_op(attention_case({.tokens = 70, .window = 5}));
  check_op(attention_case({.sink = true, .gate = Gate::headwise, .documents = true, .window = 3}));
  check_op(attention_case({.sink = true}));
  check_op(attention_case({.gate = Gate::headwise}));
  check_op(attention_case({.gate = Gate::elementwise, .documents = true}));
  check_op(attention_case({.sink = true, .gate = Gate::headwise}));
  check_op(attention_case({.clip = kernels::Clip{.zeta = 1.0f, .gamma = -0.02f}}));
  check_op(attention_case({.clip = kernels::Clip{.zeta = 1.0f, .gamma = -0.02f}, .gate = Gate::headwise}));
  check_op(attention_case({.clip = kernels::Clip{.zeta = 1.0f, .gamma = -0.02f},
                           .sink = true,
                           .gate = Gate::elementwise,
                           .documents = true}));
}

TEST(AttentionOp, ShowsQueriesKeysAndRowSumsToTheTap) {
  struct Probe : Tap {
    void observe(int, const char*, const Tensor&) override {}
    void observe_attention(int, const AttentionView& v) override {
      ++calls;
      first = read(v.q)[0];
      lse = read(v.lse)[0];
      tokens = v.tokens;
    }
    int calls = 0;
    double first = 0, lse = 0;
    int64_t tokens = 0;
  } probe;
  TestBed bed;
  bed.tape.set_tap(&probe);
  const Variant c;
  const Values x = random_values("x", c.rows() * 64, DType::f32);
  const Var qkv = bed.tape.source(make(bed.inputs, {c.rows(), 64}, DType::f32, x));
  attention(bed.tape, qkv, c.args(), {}, {});
  EXPECT_EQ(probe.calls, 1);
  EXPECT_EQ(probe.first, x[0]);
  EXPECT_EQ(probe.tokens, 10);
  double s = 0;  // the first row sees itself: its sum is one exponential
  for (size_t d = 0; d < 16; ++d) s += x[d] * x[32 + d];
  EXPECT_NEAR(probe.lse, s / 4, 1e-5);
  bed.tape.reset();
}

TEST(AttentionOp, TokenByTokenOverACacheGivesWhatTheWholeSequenceGives) {
  for (auto [dtype, window] : std::vector<std::pair<DType, int64_t>>{
           {DType::f32, 0}, {DType::bf16, 0}, {DType::f32, 4}, {DType::bf16, 4}}) {
    TestBed bed;
    bed.tape.set_mode(Tape::Mode::evaluate);
    const Variant c{.batch = 2, .tokens = 9, .heads = 4, .kv_heads = 2, .head_size = 8, .window = window};
    const int64_t cols = 64, kv = 16, capacity = 12;
    const Values x = random_values("x", c.rows() * cols, dtype);
    const Values gate = random_values("gate", c.rows() * 4, dtype), sink = random_values("sink", 4, dtype);
    const Var s = bed.tape.input(make(bed.inputs, {4}, dtype, sink));
    const Var whole = attention(bed.tape, bed.tape.input(make(bed.inputs, {c.rows(), cols}, dtype, x)),
                                c.args(), bed.tape.input(make(bed.inputs, {c.rows(), 4}, dtype, gate)), s);
    const Values expected = read(bed.tape.value(whole));
    const Tensor keys =
        make(bed.inputs, {2, capacity, kv}, dtype, Values(static_cast<size_t>(2 * capacity * kv), 9.0));
    const Tensor values =
        make(bed.inputs, {2, capacity, kv}, dtype, Values(static_cast<size_t>(2 * capacity * kv), 9.0));
    Values got(expected.size());
    for (int t = 0; t < 9; ++t) {
      Values row, gates;
      for (size_t b = 0; b < 2; ++b) {
        const size_t at = b * 9 + static_cast<size_t>(t);
        row.insert(row.end(), &x[at * 64], &x[at * 64] + 64);
        gates.insert(gates.end(), &gate[at * 4], &gate[at * 4] + 4);
      }
      AttentionArgs args = c.args();
      args.batch = 2;
      const Var y = cached_attention(bed.tape, bed.tape.input(make(bed.inputs, {2, cols}, dtype, row)), args,
                                     bed.tape.input(make(bed.inputs, {2, 4}, dtype, gates)), s, keys, values,
                                     make_i32(bed.inputs, {2}, {t + 1, t + 1}));
      const Values step = read(bed.tape.value(y));
      for (size_t b = 0; b < 2; ++b)
        std::copy_n(&step[b * 32], 32, &got[(b * 9 + static_cast<size_t>(t)) * 32]);
    }
    EXPECT_LT(relative_error(got, expected), dtype == DType::f32 ? 1e-5 : 1e-2);
    bed.tape.reset();
  }
}

TEST(AttentionOp, NamesTheColumnsItWanted) {
  TestBed bed;
  const Var x = bed.tape.input(bed.inputs.alloc({20, 60}, DType::f32));
  try {
    attention(bed.tape, x, Variant{}.args(), {}, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[attention] qkv must have (2 + 2 * 1) * 16 columns, got f32 (20, 60)");
  }
}
