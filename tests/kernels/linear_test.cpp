#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/oracle/matmul.h"
#include "tests/support/on_device.h"

namespace osprey {
namespace {

using kernels::PackFor;
using test::Buffer;
using test::OnDevice;

struct Case {
  int64_t rows, in;
  std::vector<int64_t> outs;
  DType dtype = DType::bf16;
  int64_t padding = 0;
};

const std::vector<Case> cases = {{1, 64, {64}},
                                 {1, 512, {512, 256, 256}},
                                 {3, 33, {7}},
                                 {65, 40, {65, 3}},
                                 {65, 63, {64, 64}, DType::bf16, 5},
                                 {97, 130, {128, 32, 32}, DType::bf16, 3},
                                 {6, 2, {1}},
                                 {300, 256, {192, 64}},
                                 {129, 2100, {70}},
                                 {40, 96, {31, 33, 5}, DType::bf16, 1},
                                 {65, 40, {65, 3}, DType::f32},
                                 {33, 64, {64, 64}, DType::f32, 4}};

std::string label(const Case& c) {
  std::string outs;
  for (int64_t o : c.outs) outs += std::to_string(o) + " ";
  return fmt::format("rows {} in {} outs {}{} padding {}", c.rows, c.in, outs, name(c.dtype), c.padding);
}

struct Layer {
  explicit Layer(const Case& c)
      : out(std::accumulate(c.outs.begin(), c.outs.end(), int64_t{0})), stack({out, c.in}, c.dtype) {
    stack.fill(11, 0.5);
    int64_t row = 0;
    for (int64_t o : c.outs) {
      weights.emplace_back(Shape{o, c.in}, c.dtype, c.padding);
      for (int64_t r = 0; r < o; ++r, ++row)
        for (int64_t j = 0; j < c.in; ++j) weights.back().set(r, j, stack.get(row, j));
    }
  }
  std::vector<Tensor> views(OnDevice& on) {
    std::vector<Tensor> v;
    for (Buffer& w : weights) v.push_back(on(w));
    return v;
  }
  // The packed weights, in 64-byte aligned memory; empty where this machine wants none.
  Tensor pack(OnDevice& on, PackFor use) {
    const std::vector<Tensor> parts = views(on);
    const int64_t bytes = kernels::linear_pack_bytes(on.queue, parts, use);
    if (bytes == 0) return {};
    memory.assign(static_cast<size_t>(bytes) + 64, 0x7f);
    void* data = memory.data();
    size_t space = memory.size();
    const Tensor t =
        make_tensor(std::align(64, static_cast<size_t>(bytes), data, space), {bytes / 2}, DType::bf16);
    kernels::linear_pack(on.queue, {.pack = t, .weights = parts, .use = use});
    return t;
  }
  int64_t out;
  Buffer stack;
  std::vector<Buffer> weights;
  std::vector<char> memory;
};

void expect_near(const Buffer& got, const oracle::Product& want, const std::vector<double>& added,
                 int64_t k) {
  const double ulp = got.tensor().dtype == DType::bf16 ? 1.0 / 200 : 0;
  for (int64_t i = 0; i < got.tensor().numel(); ++i) {
    const auto u = static_cast<size_t>(i);
    const double w = want.value[u] + (added.empty() ? 0 : added[u]);
    ASSERT_NEAR(
        got.get(i), w,
        1e-6 * std::sqrt(static_cast<double>(k)) * (want.magnitude[u] + 1) + ulp * (std::fabs(w) + 1e-3))
        << "element " << i;
  }
  EXPECT_TRUE(got.guards_intact());
}

TEST(Linear, ForwardAgreesWithTheOracleWithAndWithoutPackAndResidual) {
  for (const Case& c : cases) {
    Layer layer(c);
    Buffer x({c.rows, c.in}, c.dtype, c.padding);
    x.fill(1);
    const oracle::Product want = oracle::matmul(x, false, layer.stack, true);
    for (DType y_type : {DType::bf16, DType::f32})
      for (const bool packed : {true, false})
        for (const bool with_residual : {false, true}) {
          SCOPED_TRACE(label(c) + (packed ? " packed" : "") + (with_residual ? " residual" : ""));
          Buffer residual({c.rows, layer.out}, y_type, c.padding);
          Buffer y({c.rows, layer.out}, y_type, c.padding), again({c.rows, layer.out}, y_type, c.padding);
          residual.fill(2);
          for (Buffer* to : {&y, &again}) {
            OnDevice on(to == &y ? 2 : 1);
            const std::vector<Tensor> weights = layer.views(on);
            kernels::linear_forward(on.queue, {.y = on(*to),
                                               .x = on(x),
                                               .weights = weights,
                                               .pack = packed ? layer.pack(on, PackFor::forward) : Tensor{},
                                               .residual = with_residual ? on(residual) : Tensor{}});
            on.fetch();
          }
          expect_near(y, want, with_residual ? residual.values() : std::vector<double>{}, c.in);
          EXPECT_TRUE(y.same_bits(again)) << "depends on the number of threads";
        }
  }
}

TEST(Linear, ResidualMayBeTheOutput) {
  for (const Case& c : cases) {
    SCOPED_TRACE(label(c));
    Layer layer(c);
    Buffer x({c.rows, c.in}, c.dtype), y({c.rows, layer.out}, c.dtype);
    x.fill(1);
    y.fill(2);
    const std::vector<double> before = y.values();
    OnDevice on;
    const std::vector<Tensor> weights = layer.views(on);
    const Tensor pack = layer.pack(on, PackFor::forward);
    kernels::linear_forward(on.queue,
                            {.y = on(y), .x = on(x), .weights = weights, .pack = pack, .residual = on(y)});
    on.fetch();
    expect_near(y, oracle::matmul(x, false, layer.stack, true), before, c.in);
  }
}

TEST(Linear, DgradAgreesWithTheOracleAndAccumulates) {
  for (const Case& c : cases) {
    Layer layer(c);
    Buffer dy({c.rows, layer.out}, c.dtype, c.padding);
    dy.fill(3);
    const oracle::Product want = oracle::matmul(dy, false, layer.stack, false);
    for (DType dx_type : {c.dtype, DType::f32})
      for (const bool packed : {true, false})
        for (const bool add : {false, true}) {
          SCOPED_TRACE(label(c) + (packed ? " packed" : "") + (add ? " add" : ""));
          Buffer dx({c.rows, c.in}, dx_type, c.padding);
          Buffer again({c.rows, c.in}, dx_type, c.padding);
          if (add) {
            dx.fill(4);
            again.fill(4);
          }
          const std::vector<double> before = add ? dx.values() : std::vector<double>{};
          for (Buffer* to : {&dx, &again}) {
            OnDevice on(to == &dx ? 2 : 1);
            const std::vector<Tensor> weights = layer.views(on);
            const Tensor pack = packed ? layer.pack(on, PackFor::dgrad) : Tensor{};
            kernels::linear_dgrad(on.queue,
                                  {.dx = {on(*to), add}, .dy = on(dy), .weights = weights, .pack = pack});
            on.fetch();
          }
          expect_near(dx, want, before, layer.out);
          EXPECT_TRUE(dx.same_bits(again)) << "depends on the number of threads";
        }
  }
}

TEST(Linear, WgradAgreesWithTheOracleAndTwiceIsTwice) {
  std::vector<Case> all = cases;
  all.push_back({4099, 70, {130, 9}});  // more rows than one chunk, an odd number
  for (const Case& c : all) {
    SCOPED_TRACE(label(c));
    const int64_t out = std::accumulate(c.outs.begin(), c.outs.end(), int64_t{0});
    Buffer dy({c.rows, out}, c.dtype, c.padding), x({c.rows, c.in}, c.dtype, c.padding);
    dy.fill(5);
    x.fill(6);
    const oracle::Product want = oracle::matmul(dy, true, x, false);
    std::vector<Buffer> dw, again;
    for (int64_t o : c.outs) {
      dw.emplace_back(Shape{o, c.in}, DType::f32, c.padding);
      again.emplace_back(Shape{o, c.in}, DType::f32, c.padding);
    }
    const auto accumulate = [&](std::vector<Buffer>& to, int threads, bool add, size_t skipped) {
      OnDevice on(threads);
      std::vector<Accum> into;
      for (size_t i = 0; i < to.size(); ++i)
        into.push_back(i == skipped ? Accum{} : Accum{on(to[i]), add});  // undefined: not wanted
      kernels::linear_wgrad(on.queue, {.dweights = into, .outs = c.outs, .dy = on(dy), .x = on(x)});
      on.fetch();
    };
    const size_t nothing = dw.size(), skipped = dw.size() > 2 ? 1 : nothing;
    accumulate(dw, 2, false, nothing);
    accumulate(again, 1, false, nothing);
    for (size_t i = 0; i < dw.size(); ++i)
      EXPECT_TRUE(dw[i].same_bits(again[i])) << "depends on the number of threads";
    accumulate(dw, 2, true, skipped);
    int64_t row = 0;
    for (size_t i = 0; i < dw.size(); ++i) {
      for (int64_t r = 0; r < c.outs[i]; ++r, ++row)
        for (int64_t j = 0; j < c.in; ++j) {
          const auto u = static_cast<size_t>(row * c.in + j);
          ASSERT_NEAR(dw[i].get(r, j), (i == skipped ? 1 : 2) * want.value[u],
                      2e-6 * std::sqrt(c.rows) * (want.magnitude[u] + 1));
        }
      EXPECT_TRUE(dw[i].guards_intact());
    }
  }
}

// Parameters of one layer mostly lie one after the other, and then they may be multiplied as one matrix.
TEST(Linear, WeightsThatLieTogetherGiveTheSame) {
  const std::vector<int64_t> outs{24, 8, 8, 17};
  const auto split = [&](const Tensor& all, size_t apart) {
    std::vector<Tensor> parts;
    int64_t row = 0;
    for (int64_t o : outs) {
      if (parts.size() == apart) ++row;  // one row lies between
      parts.push_back(all.row_range(row, row + o));
      row += o;
    }
    return parts;
  };
  for (const int64_t padding : {0, 3})
    for (const size_t apart : {size_t{9}, size_t{2}}) {
      SCOPED_TRACE(fmt::format("padding {}, gap before {}", padding, apart));
      Layer layer({5, 40, outs, DType::bf16, padding});
      Buffer x({5, 40}, DType::bf16), y({5, layer.out}, DType::bf16), dx({5, 40}, DType::bf16);
      Buffer memory({layer.out + 1, 40}, DType::bf16, padding),
          dmemory({layer.out + 1, 40}, DType::f32, padding);
      x.fill(1);
      OnDevice on;
      {
        int64_t row = 0;
        for (size_t i = 0; i < outs.size(); ++i) {
          if (i == apart) ++row;
          for (int64_t r = 0; r < outs[i]; ++r, ++row)
            for (int64_t j = 0; j < 40; ++j) memory.set(row, j, layer.weights[i].get(r, j));
        }
      }
      const std::vector<Tensor> weights = split(on(memory), apart);
      std::vector<Accum> into;
      for (const Tensor& t : split(on(dmemory), apart)) into.push_back({t, false});
      kernels::linear_forward(on.queue, {.y = on(y), .x = on(x), .weights = weights});
      kernels::linear_dgrad(on.queue, {.dx = {on(dx), false}, .dy = on(y), .weights = weights});
      kernels::linear_wgrad(on.queue, {.dweights = into, .outs = outs, .dy = on(y), .x = on(x)});
      on.fetch();
      expect_near(y, oracle::matmul(x, false, layer.stack, true), {}, 40);
      expect_near(dx, oracle::matmul(y, false, layer.stack, false), {}, layer.out);
      const oracle::Product dw = oracle::matmul(y, true, x, false);
      int64_t row = 0, stacked = 0;
      for (size_t i = 0; i < outs.size(); ++i) {
        if (i == apart) {
          for (int64_t j = 0; j < 40; ++j)
            ASSERT_TRUE(std::isnan(dmemory.get(row, j))) << "the gap was written";
          ++row;
        }
        for (int64_t r = 0; r < outs[i]; ++r, ++row, ++stacked)
          for (int64_t j = 0; j < 40; ++j)
            ASSERT_NEAR(dmemory.get(row, j), dw.value[static_cast<size_t>(stacked * 40 + j)], 1e-4);
      }
      EXPECT_TRUE(dmemory.guards_intact());
    }
}

TEST(Linear, NaNDoesNotLeakFromPaddingOrOldOutputs) {
  // Buffers start as NaN everywhere, so an output that reads what it should not is NaN.
  const Case c{5, 31, {33}, DType::bf16, 9};
  Layer layer(c);
  Buffer x({c.rows, c.in}, c.dtype, c.padding), y({c.rows, layer.out}, DType::bf16, c.padding);
  x.fill(1);
  OnDevice on;
  const std::vector<Tensor> weights = layer.views(on);
  const Tensor pack = layer.pack(on, PackFor::forward);
  kernels::linear_forward(on.queue, {.y = on(y), .x = on(x), .weights = weights, .pack = pack});
  on.fetch();
  for (double v : y.values()) ASSERT_TRUE(std::isfinite(v));
}

TEST(Linear, RefusesWhatDoesNotFit) {
  const Queue two{.device = {}, .threads = 2};
  Buffer x({4, 8}, DType::bf16), w({6, 8}, DType::bf16), other({6, 9}, DType::bf16), y({4, 6}, DType::bf16),
      wide({6, 8}, DType::f32);
  const auto forward = [&](const Buffer& weight, const Tensor& out) {
    const Tensor view = weight;
    kernels::linear_forward(two, {.y = out, .x = x, .weights = {&view, 1}});
  };
  EXPECT_NO_THROW(forward(w, y));
  EXPECT_THROW(forward(other, y), Error);
  EXPECT_THROW(forward(wide, y), Error);
  EXPECT_THROW(forward(w, x), Error);
  const int64_t outs[] = {6};
  const Accum bad{x, false};
  EXPECT_THROW(kernels::linear_wgrad(two, {.dweights = {&bad, 1}, .outs = outs, .dy = y, .x = x}), Error);
}

}  // namespace
}  // namespace osprey
