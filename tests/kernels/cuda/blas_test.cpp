// The products that all others are made of. On a GPU this tests how cuBLASLt is called; on the executor, what
// stands in for it.

#include "kernels/cuda/blas.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/block_matmul.h"
#include "tests/oracle/quantize.h"
#include "tests/support/device_copy.h"
#include "tests/support/on_device.h"

namespace osprey {
namespace {

using cuda::Gemm;
using test::Buffer;
using test::OnDevice;

enum class Addend { none, in_place, apart };

struct Case {
  int64_t m, n, k;
  DType input = DType::bf16, output = DType::bf16;
  bool transpose_a = false, transpose_b = false;
  int64_t batch = 1, padding = 0;
  float alpha = 1, beta = 0;
  Addend addend = Addend::none;
};

std::string label(const Case& c) {
  return fmt::format("{}x{}x{} {}->{} {}{} batch {} padding {} alpha {} beta {} addend {}", c.m, c.n, c.k,
                     name(c.input), name(c.output), c.transpose_a ? 't' : 'n', c.transpose_b ? 't' : 'n',
                     c.batch, c.padding, c.alpha, c.beta, static_cast<int>(c.addend));
}

int64_t row_stride(const Tensor& t) { return t.strides[1]; }

struct Problem {
  explicit Problem(const Case& given)
      : c(given),
        a({c.batch, c.transpose_a ? c.k : c.m, c.transpose_a ? c.m : c.k}, c.input, c.padding),
        b({c.batch, c.transpose_b ? c.n : c.k, c.transpose_b ? c.k : c.n}, c.input, c.padding),
        addend({c.batch, c.m, c.n}, c.output, 2 * c.padding) {
    a.fill(1);
    b.fill(2);
    addend.fill(3);
  }
  double left(int64_t s, int64_t i, int64_t l) const {
    return c.transpose_a ? a.get(s * c.k + l, i) : a.get(s * c.m + i, l);
  }
  double right(int64_t s, int64_t l, int64_t j) const {
    return c.transpose_b ? b.get(s * c.n + j, l) : b.get(s * c.k + l, j);
  }
  void run(Buffer& d) {
    if (c.addend == Addend::in_place)
      for (int64_t r = 0; r < c.batch * c.m; ++r)
        for (int64_t j = 0; j < c.n; ++j) d.set(r, j, addend.get(r, j));
    OnDevice on;
    const Tensor ta = on(a), tb = on(b), tc = on(addend), td = on(d);
    const bool apart = c.addend == Addend::apart;
    on.queue.stream->blas().gemm({.a = ta.data,
                                  .b = tb.data,
                                  .c = apart ? tc.data : nullptr,
                                  .d = td.data,
                                  .input = c.input,
                                  .output = c.output,
                                  .transpose_a = c.transpose_a,
                                  .transpose_b = c.transpose_b,
                                  .m = c.m,
                                  .n = c.n,
                                  .k = c.k,
                                  .a_stride = row_stride(ta),
                                  .b_stride = row_stride(tb),
                                  .c_stride = apart ? row_stride(tc) : 0,
                                  .d_stride = row_stride(td),
                                  .batch = c.batch,
                                  .a_batch_stride = ta.strides[0],
                                  .b_batch_stride = tb.strides[0],
                                  .c_batch_stride = apart ? tc.strides[0] : 0,
                                  .d_batch_stride = td.strides[0],
                                  .alpha = c.alpha,
                                  .beta = c.beta});
    on.fetch();
  }
  const Case c;
  Buffer a, b, addend;
};

void expect_plain_loops(const Case& c) {
  SCOPED_TRACE(label(c));
  Problem p(c);
  Buffer d({c.batch, c.m, c.n}, c.output, c.padding), again({c.batch, c.m, c.n}, c.output, c.padding);
  p.run(d);
  p.run(again);
  EXPECT_TRUE(d.same_bits(again)) << "two runs differ";
  EXPECT_TRUE(d.guards_intact());
  for (int64_t r = 0; r < c.batch * c.m; ++r)
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0, size = 0;
      for (int64_t l = 0; l < c.k; ++l) {
        const double product = p.left(r / c.m, r % c.m, l) * p.right(r / c.m, l, j);
        sum += product;
        size += std::fabs(product);
      }
      const double added = c.beta == 0 ? 0 : c.beta * p.addend.get(r, j);
      const double want = c.alpha * sum + added;
      const double rounding = c.output == DType::bf16 ? std::fabs(want) / 250 : 0;
      ASSERT_NEAR(d.get(r, j), want,
                  rounding + 1e-6 * std::sqrt(static_cast<double>(c.k)) *
                                 (std::fabs(static_cast<double>(c.alpha)) * size + std::fabs(added) + 1))
          << r << ", " << j;
    }
}

class Blas : public testing::Test {
 protected:
  void SetUp() override {
    if (test::test_queue().device.kind != DeviceKind::cuda)
      GTEST_SKIP() << "needs a GPU, or the executor that plays one: OSPREY_TEST_DEVICE=cuda";
  }
};

constexpr std::pair<DType, DType> types[] = {
    {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}, {DType::f32, DType::f32}};

TEST_F(Blas, MultipliesEveryTranspositionAndStride) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{1, 1, 1}, {5, 7, 3}, {64, 96, 32}, {33, 1, 65}, {1, 130, 64}, {66, 72, 129}})
    for (const auto& [input, output] : types)
      for (bool ta : {false, true})
        for (bool tb : {false, true})
          for (int64_t padding : {0, 3, 8}) expect_plain_loops({m, n, k, input, output, ta, tb, 1, padding});
}

TEST_F(Blas, AddsInPlaceAndFromElsewhere) {
  for (const auto& [input, output] : types)
    for (Addend addend : {Addend::in_place, Addend::apart})
      for (int64_t batch : {1, 3})
        for (int64_t padding : {0, 5}) {
          expect_plain_loops({40, 24, 48, input, output, false, true, batch, padding, 1, 1, addend});
          expect_plain_loops({17, 9, 31, input, output, true, false, batch, padding, -0.5f, 0.25f, addend});
        }
}

TEST_F(Blas, MultipliesBatches) {
  for (const auto& [input, output] : types)
    for (bool ta : {false, true})
      for (int64_t padding : {0, 3}) expect_plain_loops({20, 36, 19, input, output, ta, !ta, 5, padding, 2});
}

TEST_F(Blas, WithoutBetaWhatWasThereDoesNotMatter) {  // buffers start as NaN
  for (const auto& [input, output] : types) expect_plain_loops({16, 16, 16, input, output});
}

/// E4M3 codes of finite numbers, dense.
std::vector<uint8_t> e4m3_codes(int64_t count, uint64_t stream) {
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < count; ++i) {
    const auto code = static_cast<uint8_t>(random_uniform(5, stream, static_cast<uint64_t>(i)) * 256);
    codes.push_back((code & 0x7f) == 0x7f ? uint8_t{0x7e} : code);
  }
  return codes;
}

TEST_F(Blas, MultipliesE4m3WithAndWithoutScalesOfRows) {
  const std::vector<double> table = oracle::enumerate_codes(Element::e4m3);
  int multiplied = 0;
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{16, 16, 32}, {5, 48, 96}, {130, 80, 512}})
    for (const DType output : {DType::f32, DType::bf16})
      for (const bool scaled : {false, true})
        for (const bool add : {false, true})
          for (const bool fast : {false, true}) {
            SCOPED_TRACE(fmt::format("{}x{}x{} to {}{}{}{}", m, n, k, name(output), scaled ? " scaled" : "",
                                     add ? " add" : "", fast ? " fast" : ""));
            const std::vector<uint8_t> a = e4m3_codes(m * k, 1), b = e4m3_codes(n * k, 2);
            std::vector<float> a_scales, b_scales;
            for (int64_t i = 0; i < m; ++i)
              a_scales.push_back(std::ldexp(1.0f, static_cast<int>(i % 9) - 20));
            for (int64_t j = 0; j < n; ++j) b_scales.push_back(std::ldexp(1.0f, 3 - static_cast<int>(j % 5)));
            const test::DeviceCopy<uint8_t> a_device(a), b_device(b);
            const test::DeviceCopy<float> a_scales_device(a_scales), b_scales_device(b_scales);
            Buffer d({m, n}, output, 16);
            if (add) d.fill(3);
            const std::vector<double> before = d.values();
            OnDevice on;
            const Tensor to = on(d);
            const Gemm gemm{.a = a_device.flat().data,
                            .b = b_device.flat().data,
                            .d = to.data,
                            .input = DType::u8,
                            .output = output,
                            .transpose_b = true,
                            .m = m,
                            .n = n,
                            .k = k,
                            .a_stride = k,
                            .b_stride = k,
                            .d_stride = to.row_stride(),
                            .alpha = 0.5f,
                            .beta = add ? 1.0f : 0.0f,
                            .a_scales = scaled ? a_scales_device.flat().as<float>() : nullptr,
                            .b_scales = scaled ? b_scales_device.flat().as<float>() : nullptr,
                            .fast_sums = fast};
            cuda::Blas& blas = on.queue.stream->blas();
            if (!blas.has(gemm)) continue;
            blas.gemm(gemm);
            on.fetch();
            ++multiplied;
            EXPECT_TRUE(d.guards_intact());
            const bool exact = blas.label() == "plain loops";
            const double share = exact ? 6e-8 * static_cast<double>(k) : kernels::e4m3_slack * (fast ? 8 : 1);
            for (int64_t i = 0; i < m; ++i)
              for (int64_t j = 0; j < n; ++j) {
                double sum = 0, size = 0;
                for (int64_t l = 0; l < k; ++l) {
                  const double product =
                      table[a[static_cast<size_t>(i * k + l)]] * table[b[static_cast<size_t>(j * k + l)]];
                  sum += product;
                  size += std::fabs(product);
                }
                const double factor =
                    0.5 * (scaled ? static_cast<double>(a_scales[static_cast<size_t>(i)]) *
                                        static_cast<double>(b_scales[static_cast<size_t>(j)])
                                  : 1.0);
                const double want = factor * sum + (add ? before[static_cast<size_t>(i * n + j)] : 0.0);
                ASSERT_NEAR(
                    d.get(i, j), want,
                    share * factor * size + std::fabs(want) * (output == DType::bf16 ? 1.0 / 250 : 1e-6))
                    << i << ", " << j;
              }
          }
  EXPECT_GT(multiplied, 0) << "no product of E4M3 at all; sm_89 and later have them";
}

TEST_F(Blas, NamesWhatItCannotDo) {
  try {
    expect_plain_loops({4, 6, 8, DType::f32, DType::bf16});
    FAIL() << "f32 operands gave bf16";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("4 x 6 x 8"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace osprey
