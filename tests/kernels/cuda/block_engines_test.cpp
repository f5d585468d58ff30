// Every engine of packed products, on a GPU or on the executor, where cuBLASLt's FP8 products are plain loops
// in fp32.

#include <gtest/gtest.h>

#include "kernels/cuda/blas.h"
#include "kernels/cuda/block_product.h"
#include "kernels/quantize.h"
#include "tests/support/block_problem.h"

namespace osprey {
namespace {

using cuda::BlockEngine;
using test::BlockCase;
using test::BlockProblem;
using test::Buffer;
using test::OnDevice;
using test::Spread;

bool is_fp8(BlockEngine e) { return e != BlockEngine::definition && e != BlockEngine::tiles; }

class BlockEnginesOfGpus : public testing::TestWithParam<BlockEngine> {
 protected:
  void SetUp() override {
    if (test::test_device().kind != DeviceKind::cuda)
      GTEST_SKIP() << "needs a GPU, or the executor that plays one: OSPREY_TEST_DEVICE=cuda";
  }
  /// What this engine may be off by on this device, see BlockProblem::expect().
  double share() const {
    if (!is_fp8(GetParam()) || test::test_queue().stream->blas().label() == "plain loops") return 0;
    return kernels::e4m3_slack * (GetParam() == BlockEngine::fp8_fast ? 8 : 1);
  }
  /// Runs a problem twice where the engine can be had. Returns whether it can.
  bool check(const BlockProblem& p) const {
    Buffer y = p.output(), again = p.output();
    OnDevice on;
    const kernels::BlockMatmul args = p.args(on(y)), repeated = p.args(on(again));
    if (cuda::why_not(GetParam(), on.queue, args)) return false;
    cuda::block_matmul_by(GetParam(), on.queue, args);
    cuda::block_matmul_by(GetParam(), on.queue, repeated);
    on.fetch();
    p.expect(y, share());
    EXPECT_TRUE(y.same_bits(again)) << "two runs differ";
    return true;
  }
};

TEST_P(BlockEnginesOfGpus, AgreeWithTheOracle) {
  int compared = 0;
  for (const auto& [af, bf] : test::block_pairs())
    for (const BlockCase& c : test::block_cases(af, bf)) {
      SCOPED_TRACE(fmt::format("{} x {}, {}", name(af), name(bf), label(c)));
      if (!is_fp8(GetParam())) compared += check(BlockProblem(c, af, bf));
      if (HasFatalFailure()) return;
    }
  const BlockFormat& f = block_format("mxfp4");
  for (const Spread spread : {Spread::narrow, Spread::some, Spread::wide, Spread::opposite, Spread::any})
    for (BlockCase c :
         {BlockCase{70, {80}, 288}, BlockCase{33, {16, 21, 43}, 96, DType::bf16, true, 0.5f, 16},
          BlockCase{5, {48}, 64, DType::f32, true, -2}, BlockCase{130, {7, 153}, 160, DType::bf16}}) {
      c.spread = spread;
      SCOPED_TRACE(label(c));
      compared += check(BlockProblem(c, f, f));
      if (HasFatalFailure()) return;
    }
  if (is_fp8(GetParam()) && compared == 0) GTEST_SKIP() << "this GPU or its library has no such product";
  EXPECT_GE(compared, 20);
}

// Wide rows come from tiles, by whatever FP8 engine: the same bits as tiles alone.
TEST_P(BlockEnginesOfGpus, WideRowsAreThoseOfTiles) {
  if (!is_fp8(GetParam())) GTEST_SKIP() << "an engine without E4M3 images";
  const BlockFormat& f = block_format("mxfp4");
  for (const bool add : {false, true}) {
    const BlockProblem p({75, {64, 16}, 128, DType::f32, add, 1, 0, Spread::some}, f, f);
    Buffer y = p.output(), tiles = p.output();
    OnDevice on;
    if (cuda::why_not(GetParam(), on.queue, p.args(on(y)))) GTEST_SKIP() << "this GPU has no such product";
    cuda::block_matmul_by(GetParam(), on.queue, p.args(on(y)));
    cuda::block_matmul_by(BlockEngine::tiles, on.queue, p.args(on(tiles)));
    on.fetch();
    int wide = 0;
    for (int64_t i = 0; i < 75; ++i)
      for (int64_t j = 0; j < 80; ++j) {
        if (i % 5 != 2 && (j < 64 ? j : j - 64) % 7 != 3) continue;
        ASSERT_EQ(y.get(i, j), tiles.get(i, j)) << i << ", " << j;
        ++wide;
      }
    EXPECT_GT(wide, 1200);
  }
}

TEST_P(BlockEnginesOfGpus, ScalesThatAreNaNMakeTheirRowsNaNAndNoOthers) {
  const BlockFormat& f = block_format("mxfp4");
  test::BlockMatrix a(f, 70, 128, 1, Spread::narrow), b(f, 32, 128, 2, Spread::narrow);
  a.scales[2 * 4 + 3] = 255;
  b.scales[7 * 4] = 255;
  const test::PackedOnDevice a_device(a), b_device(b);
  const Packed views[] = {b_device};
  Buffer y({70, 32}, DType::f32);
  OnDevice on;
  const kernels::BlockMatmul args{.y = {on(y), false}, .a = a_device, .b = views};
  if (cuda::why_not(GetParam(), on.queue, args)) GTEST_SKIP() << "this GPU has no such product";
  cuda::block_matmul_by(GetParam(), on.queue, args);
  on.fetch();
  for (int64_t i = 0; i < 70; ++i)
    for (int64_t j = 0; j < 32; ++j) ASSERT_EQ(std::isnan(y.get(i, j)), i == 2 || j == 7) << i << ", " << j;
}

TEST_P(BlockEnginesOfGpus, PanelsGiveTheSameNumbers) {
  if (!is_fp8(GetParam())) GTEST_SKIP() << "an engine that takes no scratch";
  const BlockFormat& f = block_format("mxfp4");
  for (const auto& [m, ns] : {std::pair{int64_t{300}, std::vector<int64_t>{150, 170}},
                              {int64_t{40}, std::vector<int64_t>{100, 300}},
                              {int64_t{400}, std::vector<int64_t>{16}}}) {
    const BlockProblem p({m, ns, 64, DType::f32, true, 1, 0, Spread::some}, f, f);
    SCOPED_TRACE(label(p.c));
    Buffer y = p.output();
    OnDevice on;
    const kernels::BlockMatmul args = p.args(on(y));
    if (cuda::why_not(GetParam(), on.queue, args)) GTEST_SKIP() << "this GPU has no such product";
    // Images of some 280 rows of 64 elements; as much again for fp32 sums where scales are applied apart.
    cuda::multiply_e4m3(on.queue, args, GetParam(), (GetParam() == BlockEngine::fp8_apart ? 2 : 1) * 24000);
    on.fetch();
    p.expect(y, share());
  }
}

TEST_P(BlockEnginesOfGpus, RowsTooLongForTheScratchAreNamed) {
  if (!is_fp8(GetParam())) GTEST_SKIP() << "an engine that takes no scratch";
  const BlockFormat& f = block_format("mxfp4");
  const BlockProblem p({300, {320}, 64}, f, f);
  Buffer y = p.output();
  OnDevice on;
  const kernels::BlockMatmul args = p.args(on(y));
  try {
    cuda::multiply_e4m3(on.queue, args, GetParam(), 12000);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("rows of 64 elements are too long"), std::string::npos) << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(, BlockEnginesOfGpus, testing::ValuesIn(cuda::block_engines),
                         [](const auto& engine) { return std::string(cuda::name(engine.param)); });

TEST(BlockEngineOfGpus, IsChosenByFormatRowsAndColumns) {
  if (test::test_device().kind != DeviceKind::cuda)
    GTEST_SKIP() << "needs a GPU, or the executor that plays one";
  if (test::test_queue().stream->properties().major != 9) GTEST_SKIP() << "not the choice of Hopper";
  const auto chosen = [](const char* format, const BlockCase& c) {
    const BlockProblem p(c, block_format(format), block_format(format));
    Buffer y = p.output();
    OnDevice on;
    return cuda::block_engine(on.queue, p.args(on(y)));
  };
  EXPECT_EQ(chosen("mxfp4", {65, {16}, 64}), BlockEngine::fp8);
  EXPECT_EQ(chosen("mxfp4", {65, {9, 7}, 64, DType::bf16}), BlockEngine::fp8);
  EXPECT_EQ(chosen("mxfp4", {64, {16}, 64}), BlockEngine::tiles) << "few rows";
  EXPECT_EQ(chosen("mxfp4", {65, {20}, 64}), BlockEngine::tiles) << "columns that FP8 does not have";
  EXPECT_EQ(chosen("mxfp4", {65, {16}, 64, DType::bf16, false, 1, 3}), BlockEngine::fp8_apart)
      << "rows of y that the library cannot write";
  EXPECT_EQ(chosen("nvfp4", {65, {16}, 64}), BlockEngine::tiles);
  EXPECT_EQ(chosen("mxint8", {65, {16}, 64}), BlockEngine::tiles);
  EXPECT_EQ(chosen("mxfp8_e4m3", {65, {16}, 64}), BlockEngine::definition);
  EXPECT_EQ(chosen("int8_row", {65, {16}, 64}), BlockEngine::definition);
}

TEST(BlockEngineOfGpus, ThatCannotBeHadSaysWhy) {
  if (test::test_device().kind != DeviceKind::cuda)
    GTEST_SKIP() << "needs a GPU, or the executor that plays one";
  const BlockProblem p({70, {16}, 64}, block_format("nvfp4"), block_format("nvfp4"));
  Buffer y = p.output();
  OnDevice on;
  try {
    cuda::block_matmul_by(BlockEngine::fp8, on.queue, p.args(on(y)));
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("the engine fp8 cannot be had: E4M3 images are of mxfp4 alone"),
              std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace osprey
