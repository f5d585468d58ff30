#include "kernels/attention.h"

#include <gtest/gtest.h>

#include "tests/oracle/attention.h"
#include "tests/support/on_device.h"

using namespace osprey;
using osprey::test::Buffer;
using osprey::test::OnDevice;
using osprey::test::test_device;

namespace {

using Gate = oracle::Attention::Gate;

struct Case {
  DType dtype = DType::f32;
  int64_t batch = 2, tokens = 65, heads = 2, kv_heads = 2, head_size = 16;
  std::optional<kernels::Clip> clip = {};
  bool sink = false;
  Gate gate = Gate::none;
  bool documents = false;
  int64_t window = 0;
  double q_scale = 1.0;
  int64_t padding = 8;  // elements between the rows of q, k, v and of their gradients

  std::string str() const {
    return fmt::format("{} B{} T{} H{} G{} D{}{}{}{}{}{}", name(dtype), batch, tokens, heads, kv_heads,
                       head_size, clip ? " clip" : "", sink ? " sink" : "",
                       gate == Gate::headwise      ? " headwise"
                       : gate == Gate::elementwise ? " elementwise"
                                                   : "",
                       documents ? " documents" : "", window ? fmt::format(" window {}", window) : "");
  }
  int64_t rows() const { return batch * tokens; }
};

/// All tensors of a case; q, k, v and their gradients are columns of fused buffers.
struct Tensors {
  Case c;
  Buffer qkv, gate, sink, start, o, lse, dy, dqkv, dgate, dsink;

  explicit Tensors(const Case& c_)
      : c(c_),
        qkv({c.rows(), (c.heads + 2 * c.kv_heads) * c.head_size}, c.dtype, c.padding),
        gate({c.rows(), c.gate == Gate::headwise ? c.heads : c.heads * c.head_size}, c.dtype, 3),
        sink({c.heads}, c.dtype),
        start({c.rows()}, DType::i32),
        o({c.rows(), c.heads * c.head_size}, c.dtype, 4),
        lse({c.batch, c.heads, c.tokens}, DType::f32),
        dy({c.rows(), c.heads * c.head_size}, c.dtype, 2),
        dqkv({c.rows(), (c.heads + 2 * c.kv_heads) * c.head_size}, c.dtype, c.padding),
        dgate({c.rows(), gate.tensor().cols()}, c.dtype, 1),
        dsink({c.heads}, DType::f32) {
    qkv.fill(1, c.q_scale);
    gate.fill(2);
    sink.fill(3);
    dy.fill(4);
    for (int64_t b = 0; b < c.batch; ++b) {
      int64_t first = 0;
      for (int64_t t = 0; t < c.tokens; ++t) {
        if (random_u64(5, static_cast<uint64_t>(b), static_cast<uint64_t>(t)) % 23 == 0) first = t;
        start.set(0, b * c.tokens + t, static_cast<double>(first));
      }
    }
  }
  Tensor q(const Tensor& m) const { return m.columns(0, c.heads * c.head_size); }
  Tensor k(const Tensor& m) const {
    return m.columns(c.heads * c.head_size, (c.heads + c.kv_heads) * c.head_size);
  }
  Tensor v(const Tensor& m) const { return m.columns((c.heads + c.kv_heads) * c.head_size, m.cols()); }

  kernels::AttentionForward forward_args(OnDevice& on) {
    return {.o = on(o),
            .lse = on(lse),
            .q = q(on(qkv)),
            .k = k(on(qkv)),
            .v = v(on(qkv)),
            .batch = c.batch,
            .head_size = c.head_size,
            .document_start = c.documents ? on(start) : Tensor{},
            .window = c.window,
            .clip = c.clip,
            .sink = c.sink ? on(sink) : Tensor{},
            .gate = c.gate != Gate::none ? on(gate) : Tensor{}};
  }
  kernels::AttentionBackward backward_args(OnDevice& on, bool add = false) {
    return {.dq = {q(on(dqkv)), add},
            .dk = {k(on(dqkv)), add},
            .dv = {v(on(dqkv)), add},
            .dgate = {c.gate != Gate::none ? on(dgate) : Tensor{}, add},
            .dsink = {c.sink ? on(dsink) : Tensor{}, add},
            .dy = on(dy),
            .o = on(o),
            .lse = on(lse),
            .q = q(on(qkv)),
            .k = k(on(qkv)),
            .v = v(on(qkv)),
            .batch = c.batch,
            .head_size = c.head_size,
            .document_start = c.documents ? on(start) : Tensor{},
            .window = c.window,
            .clip = c.clip,
            .sink = c.sink ? on(sink) : Tensor{},
            .gate = c.gate != Gate::none ? on(gate) : Tensor{}};
  }
  void forward(int threads) {
    OnDevice on(threads);
    kernels::attention_forward(on.queue, forward_args(on));
    on.fetch();
  }
  void backward(int threads, bool add = false) {
    OnDevice on(threads);
    kernels::attention_backward(on.queue, backward_args(on, add));
    on.fetch();
  }
  void run(int threads) {
    forward(threads);
    backward(threads);
  }
  bool guards_intact() const {
    for (const Buffer* m : {&qkv, &gate, &sink, &start, &o, &lse, &dy, &dqkv, &dgate, &dsink})
      if (!m->guards_intact()) return false;
    return true;
  }
};

std::vector<double> values(const Tensor& t) {
  std::vector<double> out;
  for (int64_t r = 0; r < t.rows(); ++r)
    for (int64_t col = 0; col < t.cols(); ++col) {
      const int64_t at = r * t.row_stride() + col;
      out.push_back(t.dtype == DType::bf16 ? to_float(t.as<bf16>()[at]) : t.as<float>()[at]);
    }
  return out;
}

double largest(const std::vector<double>& v) {
  double most = 0;
  for (double x : v) most = std::max(most, std::abs(x));
  return most;
}

/// Largest difference relative to the largest value expected; NaN counts as infinitely far.
double distance(const std::vector<double>& got, const std::vector<double>& expected, double floor = 1e-3) {
  if (got.size() != expected.size()) return INFINITY;
  double most = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(got[i] - expected[i]);
    if (!(d <= most)) most = std::isnan(d) ? INFINITY : d;
  }
  return most / std::max(largest(expected), floor);
}

oracle::Attention oracle_of(const Case& c, const Tensors& t) {
  oracle::Attention a{.batch = static_cast<size_t>(c.batch),
                      .tokens = static_cast<size_t>(c.tokens),
                      .heads = static_cast<size_t>(c.heads),
                      .kv_heads = static_cast<size_t>(c.kv_heads),
                      .head_size = static_cast<size_t>(c.head_size),
                      .scale = 1 / std::sqrt(static_cast<double>(c.head_size)),
                      .gate = c.gate};
  if (c.clip) {
    a.clipped = true;
    a.zeta = static_cast<double>(c.clip->zeta);
    a.gamma = static_cast<double>(c.clip->gamma);
  }
  if (c.documents)
    for (int64_t i = 0; i < c.rows(); ++i) a.document_start.push_back(static_cast<int>(t.start.get(0, i)));
  a.window = static_cast<size_t>(c.window);
  return a;
}

oracle::Attention::Inputs inputs_of(const Case& c, const Tensors& t) {
  return {values(t.q(t.qkv)), values(t.k(t.qkv)), values(t.v(t.qkv)),
          c.sink ? t.sink.values() : std::vector<double>{},
          c.gate == Gate::none ? std::vector<double>{} : values(t.gate)};
}

void expect_oracle(const Case& c) {
  SCOPED_TRACE(c.str());
  Tensors t(c);
  t.run(2);
  const oracle::Attention a = oracle_of(c, t);
  const auto in = inputs_of(c, t);
  const auto out = a.forward(in);
  const auto grad = a.backward(in, values(t.dy));
  const bool f32 = c.dtype == DType::f32;
  // With one or two keys dP and the row term all but cancel; what rounding o to bf16 left stands
  // out.
  const double near = f32 ? 3e-6 : 8e-3, back = f32 ? 1e-5 : c.tokens <= 2 ? 4e-2 : 1.5e-2;
  EXPECT_LT(distance(values(t.o), out.o), near) << "o";
  EXPECT_LT(distance(t.lse.values(), out.lse), 3e-6) << "lse";
  const double floor = c.tokens == 1 ? 1.0 : 1e-3;  // a single key has probability 1 and no gradient
  EXPECT_LT(distance(values(t.q(t.dqkv)), grad.q, floor), back) << "dq";
  EXPECT_LT(distance(values(t.k(t.dqkv)), grad.k, floor), back) << "dk";
  EXPECT_LT(distance(values(t.v(t.dqkv)), grad.v), back) << "dv";
  if (c.gate != Gate::none) {
    EXPECT_LT(distance(values(t.dgate), grad.gate), back) << "dgate";
  }
  if (c.sink) {
    EXPECT_LT(distance(t.dsink.values(), grad.sink), back) << "dsink";
  }
  EXPECT_TRUE(t.guards_intact());
}

const kernels::Clip clip{.zeta = 1.03f, .gamma = -0.05f};

/// Every variant, alone and together.
std::vector<Case> variants() {
  std::vector<Case> all;
  for (bool clipped : {false, true})
    for (bool sink : {false, true})
      for (Gate gate : {Gate::none, Gate::headwise, Gate::elementwise}) {
        Case c;
        if (clipped) c.clip = clip;
        c.sink = sink;
        c.gate = gate;
        all.push_back(c);
      }
  return all;
}

}  // namespace

TEST(AttentionOracle, ReproducesTheGoldenRows) {
  // One query against four keys: the last row of a sequence of four, with scores given by q = e_0.
  oracle::Attention a{.tokens = 4, .head_size = 2, .clipped = true, .zeta = 1.0, .gamma = -0.05};
  oracle::Attention::Inputs in{.q = {0, 0, 0, 0, 0, 0, 1, 0},
                               .k = {2, 0, 0.5, 0, -1, 0, -3, 0},
                               .v = {1, 0, 0, 1, 2, -1, -1, 3},
                               .sink = {},
                               .gate = {}};
  double lse;
  const auto p = a.row(in, 0, 0, 3, &lse);
  EXPECT_NEAR(lse, 2.246590648, 1e-9);
  EXPECT_NEAR(p[0], 0.781460521, 1e-9);
  EXPECT_NEAR(p[3], 0.005265440, 1e-9);
  const auto out = a.forward(in);
  EXPECT_NEAR(out.o[6], 0.770533547, 1e-9);
  EXPECT_NEAR(out.o[7], 0.133085782, 1e-9);
  const auto grad = a.backward(in, {0, 0, 0, 0, 0, 0, 0.5, -1});
  const double ds[] = {0.232733797, -0.222698743, -0.008838846, -0.001196208};
  for (size_t j = 0; j < 4; ++j) EXPECT_NEAR(grad.k[2 * j], ds[j], 1e-9) << j;  // dk = ds * q

  a.clipped = false;
  in.sink = {1.0};
  const auto sunk = a.row(in, 0, 0, 3, &lse);
  EXPECT_NEAR(lse, 2.499279999, 1e-9);
  EXPECT_NEAR(sunk[1], 0.135432760, 1e-9);
  const auto with_sink = a.backward(in, {0, 0, 0, 0, 0, 0, 0.5, -1});
  EXPECT_NEAR(with_sink.sink[0], -0.047823382, 1e-9);
  EXPECT_NEAR(with_sink.k[0], 0.173486331, 1e-9);
}

TEST(AttentionOracle, GradientsAreTheDifferencesOfItsForward) {
  for (Case c : variants()) {
    c.batch = 1;
    c.tokens = 7;
    c.heads = 4;
    c.head_size = 8;
    c.documents = true;
    SCOPED_TRACE(c.str());
    const Tensors t(c);
    oracle::Attention a = oracle_of(c, t);
    a.document_start = {0, 0, 0, 3, 3, 3, 3};
    auto in = inputs_of(c, t);
    const std::vector<double> dy = values(t.dy);
    const auto grad = a.backward(in, dy);
    const auto loss = [&] {
      const auto o = a.forward(in).o;
      double sum = 0;
      for (size_t i = 0; i < o.size(); ++i) sum += o[i] * dy[i];
      return sum;
    };
    const auto check = [&](std::vector<double>& x, const std::vector<double>& g) {
      for (size_t i = 0; i < x.size(); i += 5) {
        const double was = x[i], h = 1e-5;
        x[i] = was + h;
        const double up = loss();
        x[i] = was - h;
        const double down = loss();
        x[i] = was;
        EXPECT_NEAR((up - down) / (2 * h), g[i], 1e-7);
      }
    };
    check(in.q, grad.q);
    check(in.k, grad.k);
    check(in.v, grad.v);
    check(in.sink, grad.sink);
    check(in.gate, grad.gate);
  }
}

TEST(Attention, AgreesWithTheOracleInEveryVariant) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (Case c : variants()) {
      c.dtype = dtype;
      expect_oracle(c);
    }
}

TEST(Attention, AgreesAtEveryLengthAroundATile) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t tokens : {1, 2, 63, 64, 65, 130})
      for (bool documents : {false, true})
        for (bool clipped : {false, true}) {
          Case c{.dtype = dtype, .tokens = tokens, .head_size = 32, .documents = documents};
          if (clipped) c.clip = clip;
          expect_oracle(c);
        }
}

TEST(Attention, SeesAWindowOfAnySize) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int64_t window : {2, 17, 63, 64, 65, 200, 1000})
      for (bool documents : {false, true})
        expect_oracle({.dtype = dtype,
                       .batch = 1,
                       .tokens = 200,
                       .heads = 2,
                       .kv_heads = 1,
                       .head_size = 32,
                       .documents = documents,
                       .window = window});
    for (Case c : variants()) {
      c.dtype = dtype;
      c.tokens = 150;
      c.window = 40;
      expect_oracle(c);
    }
  }
}

TEST(Attention, AWindowOfOneKeyGivesItsValue) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Tensors t({.dtype = dtype, .tokens = 70, .head_size = 32, .window = 1});
    t.run(2);
    const double near = dtype == DType::bf16 ? 8e-3 : 3e-6;
    EXPECT_LT(distance(values(t.o.tensor()), values(t.v(t.qkv))), near);
    EXPECT_LT(distance(values(t.v(t.dqkv)), values(t.dy.tensor())), near);
  }
}

TEST(Attention, AWindowAsWideAsTheSequenceChangesNoBit) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Case c{.dtype = dtype, .tokens = 130, .head_size = 32};
    Tensors all(c);
    all.run(2);
    c.window = 130;
    Tensors windowed(c);
    windowed.run(2);
    EXPECT_EQ(all.o.values(), windowed.o.values());
    EXPECT_EQ(all.dqkv.values(), windowed.dqkv.values());
  }
}

TEST(Attention, SharesKvHeadsAmongGroupsOfHeads) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t kv_heads : {1, 2, 4})
      for (Case c : variants()) {
        c.dtype = dtype;
        c.batch = 1;
        c.heads = 4;
        c.kv_heads = kv_heads;
        c.tokens = 70;
        c.documents = true;
        expect_oracle(c);
      }
}

TEST(Attention, TakesEveryHeadSize) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t head_size : {8, 24, 40, 48, 64, 72, 80, 96, 128, 200, 256})
      expect_oracle(
          {.dtype = dtype, .batch = 1, .tokens = 67, .head_size = head_size, .gate = Gate::elementwise});
}

TEST(Attention, TakesManyBlocksAndLargeScores) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    expect_oracle({.dtype = dtype, .batch = 1, .tokens = 700, .heads = 1, .kv_heads = 1, .head_size = 8});
    expect_oracle(
        {.dtype = dtype, .batch = 1, .tokens = 200, .head_size = 64, .sink = true, .documents = true});
  }
  expect_oracle({.batch = 1, .tokens = 130, .head_size = 16, .q_scale = 4.0});
}

TEST(Attention, TakesRowsThatAreNotAligned) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t padding : {1, 3})
      expect_oracle({.dtype = dtype,
                     .batch = 2,
                     .tokens = 70,
                     .head_size = 24,
                     .sink = true,
                     .gate = Gate::headwise,
                     .padding = padding});
}

TEST(Attention, DoesNotDependOnTheNumberOfThreadsOrTheRun) {
  const bool gpu = test_device().kind == DeviceKind::cuda;  // it knows no threads
  for (DType dtype : {DType::f32, DType::bf16})
    for (Case c : variants()) {
      c.dtype = dtype;
      c.batch = gpu ? 1 : 3;
      c.heads = 4;
      c.tokens = 150;
      SCOPED_TRACE(c.str());
      Tensors one(c);
      one.run(1);
      for (int threads : gpu ? std::vector<int>{1} : std::vector<int>{1, 2, 3}) {
        Tensors other(c);
        other.run(threads);
        EXPECT_TRUE(one.o.same_bits(other.o) && one.lse.same_bits(other.lse)) << threads;
        EXPECT_TRUE(one.dqkv.same_bits(other.dqkv)) << threads;
        EXPECT_TRUE(one.dgate.same_bits(other.dgate) && one.dsink.same_bits(other.dsink)) << threads;
      }
    }
}

TEST(Attention, AddsToGradientsThatWereWrittenBefore) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (Case c : variants()) {
      c.dtype = dtype;
      SCOPED_TRACE(c.str());
      Tensors t(c);
      t.run(2);
      const auto doubled = [](std::vector<double> v) {
        for (double& x : v) x *= 2;
        return v;
      };
      const auto grad = doubled(values(t.dqkv)), gate = doubled(values(t.dgate)),
                 sink = doubled(t.dsink.values());
      t.backward(2, true);
      const double near = dtype == DType::f32 ? 1e-6 : 8e-3;
      EXPECT_LT(distance(values(t.dqkv), grad), near);
      if (c.gate != Gate::none) {
        EXPECT_LT(distance(values(t.dgate), gate), near);
      }
      if (c.sink) {
        EXPECT_LT(distance(t.dsink.values(), sink), 1e-6);
      }
      EXPECT_TRUE(t.guards_intact());
    }
}

TEST(Attention, LeavesUnwantedGradientsAlone) {
  Case c{.sink = true, .gate = Gate::headwise};
  Tensors t(c);
  t.forward(1);
  t.dqkv.fill_value(3.0);
  t.dsink.fill_value(3.0);
  OnDevice on(1);
  auto args = t.backward_args(on);
  args.dq = {};
  args.dv = {};
  args.dsink = {};
  kernels::attention_backward(on.queue, args);
  on.fetch();
  for (double x : values(t.q(t.dqkv))) ASSERT_EQ(x, 3.0);
  for (double x : values(t.v(t.dqkv))) ASSERT_EQ(x, 3.0);
  EXPECT_EQ(t.dsink.get(0), 3.0);
  EXPECT_NE(values(t.k(t.dqkv))[0], 3.0);
}

TEST(Attention, PackedDocumentsEqualSeparateOnes) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    // 193 tokens are documents of 64, 63 and 66: the packed row must give what each gives alone. The last
    // begins with the last key of a tile, which the next block of queries sees nothing else of.
    const int64_t lengths[] = {64, 63, 66};
    Case c{.dtype = dtype, .batch = 1, .tokens = 193, .heads = 2, .head_size = 32, .documents = true};
    Tensors packed(c);
    int64_t at = 0;
    for (int64_t n : lengths) {
      for (int64_t t = at; t < at + n; ++t) packed.start.set(0, t, static_cast<double>(at));
      at += n;
    }
    packed.run(2);
    at = 0;
    for (int64_t n : lengths) {
      Case alone = c;
      alone.tokens = n;
      alone.documents = false;
      Tensors one(alone);
      for (int64_t t = 0; t < n; ++t) {
        for (int64_t i = 0; i < one.qkv.tensor().cols(); ++i) one.qkv.set(t, i, packed.qkv.get(at + t, i));
        for (int64_t i = 0; i < one.dy.tensor().cols(); ++i) one.dy.set(t, i, packed.dy.get(at + t, i));
      }
      one.run(1);
      const double tolerance = dtype == DType::f32 ? 2e-6 : 1e-2;
      EXPECT_LT(distance(values(packed.o.tensor().row_range(at, at + n)), values(one.o)), tolerance);
      EXPECT_LT(distance(values(packed.dqkv.tensor().row_range(at, at + n)), values(one.dqkv)), tolerance);
      at += n;
    }
  }
}

TEST(Attention, NothingLeaksAcrossDocuments) {
  // A NaN in the first document must not reach the second, nor its gradients.
  Case c{.batch = 1, .tokens = 100, .documents = true};
  Tensors t(c);
  for (int64_t i = 0; i < 100; ++i) t.start.set(0, i, i < 40 ? 0 : 40);
  Tensors changed(c);
  for (int64_t i = 0; i < 100; ++i) changed.start.set(0, i, i < 40 ? 0 : 40);
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t k = 0; k < changed.qkv.tensor().cols(); ++k)
      changed.qkv.set(i, k, 17.0 + static_cast<double>(k % 3));
  t.run(1);
  changed.run(1);
  EXPECT_EQ(values(t.o.tensor().row_range(40, 100)), values(changed.o.tensor().row_range(40, 100)));
  EXPECT_EQ(values(t.dqkv.tensor().row_range(40, 100)), values(changed.dqkv.tensor().row_range(40, 100)));
}

TEST(Attention, ANanShowsInTheOutputs) {
  Tensors t(Case{.batch = 1, .tokens = 20});
  t.qkv.set(5, 4, NAN);
  t.run(1);
  EXPECT_TRUE(std::isfinite(t.o.get(4, 4)));
  EXPECT_TRUE(std::isnan(t.o.get(5, 4)));
}

TEST(Attention, AClipOfNothingIsPlainSoftmax) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Case c{.dtype = dtype, .tokens = 100};
    Tensors plain(c);
    plain.run(1);
    c.clip = kernels::Clip{.zeta = 1.0f, .gamma = 0.0f};
    Tensors clipped(c);
    clipped.run(1);
    const double tolerance = dtype == DType::f32 ? 2e-6 : 1e-2;
    EXPECT_LT(distance(values(clipped.o), values(plain.o)), tolerance);
    EXPECT_LT(distance(values(clipped.dqkv), values(plain.dqkv)), tolerance);
  }
}

TEST(Attention, ARowWhoseKeysAreAllClippedGivesZeroAndGetsNoGradient) {
  Case c{.batch = 1, .tokens = 64, .heads = 1, .kv_heads = 1};
  c.clip = kernels::Clip{.zeta = 1.0f, .gamma = -0.5f};  // everything below a third is clipped
  Tensors t(c);
  t.qkv.fill_value(0.5);
  t.run(1);
  EXPECT_NEAR(t.o.get(0, 3), 0.5, 1e-6);  // one key: probability 1
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(t.o.get(63, i), 0.0);
    EXPECT_EQ(t.dqkv.get(63, i), 0.0);
  }
}

TEST(Attention, ASinkOfMinusInfinityIsPlainSoftmax) {
  Case c{.tokens = 70};
  Tensors plain(c);
  plain.run(1);
  c.sink = true;
  Tensors sunk(c);
  sunk.sink.fill_value(-INFINITY);
  sunk.run(1);
  EXPECT_LT(distance(values(sunk.o), values(plain.o)), 1e-7);
  EXPECT_LT(distance(values(sunk.dqkv), values(plain.dqkv)), 1e-7);
  EXPECT_EQ(sunk.dsink.get(0), 0.0);
}

TEST(Attention, DecodingGivesTheLastRowsOfForward) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (Case c : variants()) {
      c.dtype = dtype;
      c.heads = 4;
      c.tokens = 37;
      SCOPED_TRACE(c.str());
      Tensors t(c);
      t.forward(2);
      const int64_t capacity = 50, length[] = {37, 20};
      Buffer keys({c.batch, capacity, c.kv_heads * c.head_size}, dtype),
          cached({c.batch, capacity, c.kv_heads * c.head_size}, dtype);
      Buffer q({c.batch, c.heads * c.head_size}, dtype, 2), o({c.batch, c.heads * c.head_size}, dtype, 2);
      Buffer gate({c.batch, t.gate.tensor().cols()}, dtype), lengths({c.batch}, DType::i32);
      const auto k = values(t.k(t.qkv)), v = values(t.v(t.qkv));
      const int64_t kv_cols = c.kv_heads * c.head_size;
      std::vector<double> expected;
      for (int64_t b = 0; b < c.batch; ++b) {
        lengths.set(0, b, static_cast<double>(length[b]));
        const int64_t row = b * c.tokens + length[b] - 1;
        for (int64_t s = 0; s < length[b]; ++s)
          for (int64_t i = 0; i < kv_cols; ++i) {
            keys.set(b * capacity + s, i, k[static_cast<size_t>((b * c.tokens + s) * kv_cols + i)]);
            cached.set(b * capacity + s, i, v[static_cast<size_t>((b * c.tokens + s) * kv_cols + i)]);
          }
        for (int64_t i = 0; i < q.tensor().cols(); ++i) {
          q.set(b, i, t.qkv.get(row, i));
          expected.push_back(t.o.get(row, i));
        }
        for (int64_t i = 0; i < gate.tensor().cols(); ++i) gate.set(b, i, t.gate.get(row, i));
      }
      OnDevice on;
      kernels::attention_decode(on.queue, {.o = on(o),
                                           .q = on(q),
                                           .k_cache = on(keys),
                                           .v_cache = on(cached),
                                           .lengths = on(lengths),
                                           .head_size = c.head_size,
                                           .clip = c.clip,
                                           .sink = c.sink ? on(t.sink) : Tensor{},
                                           .gate = c.gate != Gate::none ? on(gate) : Tensor{}});
      on.fetch();
      EXPECT_LT(distance(values(o), expected), dtype == DType::f32 ? 3e-6 : 1e-2);
      EXPECT_TRUE(o.guards_intact());
    }
}

/// Sequences of these many keys, the last of them new, in a cache of one capacity.
struct DecodeCase {
  Case c;  // batch and tokens (the capacity) are set from the rest
  std::vector<int> lengths;
  int64_t capacity;
};

struct DecodeTensors {
  DecodeCase d;
  Buffer q, k, v, keys, cached, gate, sink, lengths, o;

  explicit DecodeTensors(const DecodeCase& d_)
      : d(d_),
        q({batch(), d.c.heads * d.c.head_size}, d.c.dtype, 1),
        k({batch(), kv_cols()}, d.c.dtype, 3),
        v({batch(), kv_cols()}, d.c.dtype),
        keys({batch(), d.capacity, kv_cols()}, d.c.dtype),
        cached({batch(), d.capacity, kv_cols()}, d.c.dtype, 8),
        gate({batch(), d.c.gate == Gate::headwise ? d.c.heads : d.c.heads * d.c.head_size}, d.c.dtype, 2),
        sink({d.c.heads}, d.c.dtype),
        lengths({batch()}, DType::i32),
        o({batch(), d.c.heads * d.c.head_size}, d.c.dtype, 2) {
    uint64_t stream = 10;
    for (Buffer* b : {&q, &k, &v, &keys, &cached, &gate, &sink}) b->fill(stream++);
    for (int64_t b = 0; b < batch(); ++b) lengths.set(0, b, d.lengths[static_cast<size_t>(b)]);
  }
  int64_t batch() const { return static_cast<int64_t>(d.lengths.size()); }
  int64_t kv_cols() const { return d.c.kv_heads * d.c.head_size; }

  void run() {
    OnDevice on;
    kernels::attention_decode(on.queue, {.o = on(o),
                                         .q = on(q),
                                         .k_cache = on(keys),
                                         .v_cache = on(cached),
                                         .lengths = on(lengths),
                                         .k = on(k),
                                         .v = on(v),
                                         .head_size = d.c.head_size,
                                         .window = d.c.window,
                                         .clip = d.c.clip,
                                         .sink = d.c.sink ? on(sink) : Tensor{},
                                         .gate = d.c.gate != Gate::none ? on(gate) : Tensor{}});
    on.fetch();
  }

  /// Row b of o, by the last row of a sequence in the oracle.
  std::vector<double> expected(int64_t b) const {
    Case one = d.c;
    one.batch = 1;
    one.tokens = d.lengths[static_cast<size_t>(b)];
    one.documents = false;
    oracle::Attention a{.tokens = static_cast<size_t>(one.tokens),
                        .heads = static_cast<size_t>(one.heads),
                        .kv_heads = static_cast<size_t>(one.kv_heads),
                        .head_size = static_cast<size_t>(one.head_size),
                        .scale = 1 / std::sqrt(static_cast<double>(one.head_size)),
                        .clipped = one.clip.has_value(),
                        .window = static_cast<size_t>(one.window)};
    if (one.clip)
      a.zeta = static_cast<double>(one.clip->zeta), a.gamma = static_cast<double>(one.clip->gamma);
    const size_t last = a.tokens - 1, width = a.heads * a.head_size;
    oracle::Attention::Inputs in{.q = std::vector<double>(a.tokens * width)};
    for (size_t i = 0; i < width; ++i) in.q[last * width + i] = q.get(b, static_cast<int64_t>(i));
    for (int64_t t = 0; t < one.tokens; ++t)
      for (int64_t i = 0; i < kv_cols(); ++i) {
        const bool fresh = t + 1 == one.tokens;
        in.k.push_back(fresh ? k.get(b, i) : keys.get(b * d.capacity + t, i));
        in.v.push_back(fresh ? v.get(b, i) : cached.get(b * d.capacity + t, i));
      }
    if (one.sink) in.sink = sink.values();
    std::vector<double> out(width, 0.0);
    for (size_t h = 0; h < a.heads; ++h) {
      double lse;
      const std::vector<double> p = a.row(in, 0, h, last, &lse);
      for (size_t e = 0; e < a.head_size; ++e) {
        double& y = out[h * a.head_size + e];
        for (size_t t = 0; t <= last; ++t)
          y += a.clip(p[t]) * in.v[(t * a.kv_heads + h / (a.heads / a.kv_heads)) * a.head_size + e];
        if (one.gate != Gate::none)
          y *= a.sigmoid(
              gate.get(b, static_cast<int64_t>(one.gate == Gate::headwise ? h : h * a.head_size + e)));
      }
    }
    return out;
  }
};

TEST(Attention, DecodesOverCachesOfManyLengths) {
  std::vector<Case> cases = variants();
  for (Case& c : cases) {
    c.kv_heads = 1;
    if (c.clip) c.clip->gamma = -0.001f;  // some of some hundred keys pass
  }
  for (int64_t kv_heads : {2, 4}) {
    cases.push_back(cases[cases.size() - 1]);  // everything together
    cases.back().kv_heads = kv_heads;
  }
  for (DType dtype : {DType::f32, DType::bf16})
    for (Case c : cases) {
      c.dtype = dtype;
      c.heads = 4;
      c.head_size = 24;
      SCOPED_TRACE(c.str());
      DecodeTensors t({c, {1, 255, 256, 257, 530}, 540});
      t.run();
      const double near = dtype == DType::bf16 ? 8e-3 : 5e-6;
      for (int64_t b = 0; b < t.batch(); ++b)
        EXPECT_LT(distance(values(t.o.tensor().row_range(b, b + 1)), t.expected(b)), near) << b;
      EXPECT_EQ(t.keys.get(4 * 540 + 529, 3), t.k.get(4, 3));
      EXPECT_EQ(t.cached.get(540 + 254, 3), t.v.get(1, 3));
      EXPECT_TRUE(t.o.guards_intact() && t.keys.guards_intact() && t.cached.guards_intact());
    }
}

TEST(Attention, DecodesWithinAWindow) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t window : {1, 7, 255, 256, 300, 529, 530, 600})
      for (bool clipped : {false, true}) {
        Case c{.dtype = dtype, .heads = 4, .kv_heads = 1, .head_size = 24, .window = window};
        if (clipped) c.clip = kernels::Clip{.zeta = 1.0f, .gamma = -0.001f};
        SCOPED_TRACE(c.str());
        DecodeTensors t({c, {1, 8, 256, 257, 530}, 540});
        t.run();
        const double near = dtype == DType::bf16 ? 8e-3 : 5e-6;
        for (int64_t b = 0; b < t.batch(); ++b)
          EXPECT_LT(distance(values(t.o.tensor().row_range(b, b + 1)), t.expected(b)), near) << b;
      }
}

TEST(Attention, DecodesEveryHeadSize) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t head_size : {8, 40, 128, 200, 256}) {
      DecodeTensors t({{.dtype = dtype, .head_size = head_size}, {20, 7}, 20});
      t.run();
      for (int64_t b = 0; b < 2; ++b)
        EXPECT_LT(distance(values(t.o.tensor().row_range(b, b + 1)), t.expected(b)),
                  dtype == DType::f32 ? 3e-6 : 8e-3);
    }
}

TEST(Attention, ALengthOutsideTheCacheIsAnErrorOnTheCpuAndNanOnAGpu) {
  DecodeTensors t({{.gate = Gate::headwise}, {4, 5, 0, 2}, 4});
  if (test_device().kind == DeviceKind::cpu) {
    EXPECT_THROW(t.run(), Error);
    return;
  }
  t.run();
  for (int64_t i = 0; i < t.o.tensor().cols(); ++i) {
    EXPECT_TRUE(std::isfinite(t.o.get(0, i)) && std::isfinite(t.o.get(3, i))) << i;
    EXPECT_TRUE(std::isnan(t.o.get(1, i)) && std::isnan(t.o.get(2, i))) << i;
  }
  EXPECT_TRUE(t.keys.guards_intact() && t.cached.guards_intact());
}

TEST(Attention, SaysWhatDoesNotFit) {
  Tensors t(Case{});
  OnDevice on;
  const auto message = [&](const auto& change) {
    auto args = t.forward_args(on);
    change(args);
    try {
      kernels::attention_forward(on.queue, args);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message([](auto& a) { a.head_size = 12; }),
            "[attention] head size must be a multiple of 8 from 8 to 256, got 12");
  EXPECT_EQ(message([](auto& a) { a.batch = 3; }), "[attention] 130 rows are not 3 equal sequences");
  EXPECT_EQ(message([](auto& a) { a.clip = kernels::Clip{.zeta = 0.5f, .gamma = -0.1f}; }),
            "[attention] clipped softmax needs gamma <= 0 and zeta >= 1, got gamma -0.1 and zeta 0.5");
  EXPECT_EQ(message([&](auto& a) { a.gate = a.k.columns(0, 16); }),
            "[attention] gate must have 2 (headwise) or 32 (elementwise) columns, got f32 (130, 16)");
  EXPECT_EQ(message([&](auto& a) { a.sink = a.lse; }), "[attention] sink must be (2), got (2, 2, 65)");
  EXPECT_EQ(message([&](auto& a) { a.k = a.k.columns(0, 16); }),
            "[attention] k and v must have one shape, got f32 (130, 16) and f32 (130, 32)");
  EXPECT_EQ(message([](auto& a) { a.window = -1; }),
            "[attention] window must be at least 1, or 0 for none, got -1");
  EXPECT_NE(message([](auto& a) { a.document_start = a.lse; }).find("document_start"), std::string::npos);
}

TEST(Attention, ChecksShapesWithoutRunningOnMeta) {
  const Device meta{DeviceKind::meta, 0};
  const auto none = [&](const Shape& s, DType d) { return make_tensor(nullptr, s, d, meta); };
  const Queue queue{.device = meta};
  kernels::AttentionForward args{.o = none({8, 32}, DType::bf16),
                                 .lse = none({2, 2, 4}, DType::f32),
                                 .q = none({8, 32}, DType::bf16),
                                 .k = none({8, 16}, DType::bf16),
                                 .v = none({8, 16}, DType::bf16),
                                 .batch = 2,
                                 .head_size = 16};
  kernels::attention_forward(queue, args);
  args.lse = none({2, 2, 5}, DType::f32);
  EXPECT_THROW(kernels::attention_forward(queue, args), Error);
}
