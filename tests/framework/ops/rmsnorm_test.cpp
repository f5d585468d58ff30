#include "framework/ops/rmsnorm.h"

#include <gtest/gtest.h>

#include <array>

#include "framework/ops/pointwise.h"
#include "tests/oracle/norm.h"
#include "tests/support/op_case.h"

using namespace osprey;
using namespace osprey::test;

namespace {
constexpr auto parameter = OpInput::Kind::parameter;
}

TEST(Rmsnorm, PassesTheOpCase) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3, 8}, {130, 65}, {257, 96}})
    check_op({.name = fmt::format("rmsnorm {}x{}", rows, cols),
              .inputs = {{.shape = {rows, cols}, .scale = 2.0},
                         {.shape = {cols}, .kind = parameter, .scale = 0.3, .offset = 1}},
              .build = [](Tape& t, const std::vector<Var>& v) { return rmsnorm(t, v[0], v[1], 1e-5f); },
              .oracle =
                  [cols = cols](const std::vector<Values>& v) {
                    return oracle::rmsnorm(v[0], v[1], static_cast<size_t>(cols), 1e-5);
                  }});
}

TEST(Rmsnorm, WithOneScaleIsSsnorm) {
  check_op({.name = "ssnorm",
            .inputs = {{.shape = {70, 48}}, {.shape = {1}, .kind = parameter, .scale = 0.1, .offset = 0.7}},
            .build = [](Tape& t, const std::vector<Var>& v) { return rmsnorm(t, v[0], v[1], 1e-6f); },
            .oracle = [](const std::vector<Values>& v) { return oracle::rmsnorm(v[0], v[1], 48, 1e-6); }});
}

TEST(Rmsnorm, OfASumPassesTheOpCaseWithOneAndWithTwoReaders) {
  enum class Readers { norm, both };
  for (const Readers readers : {Readers::norm, Readers::both})
    for (const auto& [rows, cols, weights] :
         {std::array<int64_t, 3>{130, 65, 65}, {70, 96, 96}, {33, 48, 1}}) {
      const auto sum_of = [](const std::vector<Values>& v) {
        Values sum = v[0];
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += v[1][i];
        return sum;
      };
      check_op({.name = fmt::format("add_rmsnorm {}x{}, {} reader(s)", rows, cols,
                                    readers == Readers::both ? 2 : 1),
                .inputs = {{.shape = {rows, cols}},
                           {.shape = {rows, cols}, .scale = 2.0},
                           {.shape = {weights}, .kind = parameter, .scale = 0.3, .offset = 1}},
                .build =
                    [=](Tape& t, const std::vector<Var>& v) {
                      const NormedSum r = add_rmsnorm(t, v[0], v[1], v[2], 1e-5f);
                      return readers == Readers::both ? add(t, r.normed, r.sum) : r.normed;
                    },
                .oracle =
                    [=, cols = cols](const std::vector<Values>& v) {
                      const Values sum = sum_of(v);
                      Values y = oracle::rmsnorm(sum, v[2], static_cast<size_t>(cols), 1e-5);
                      for (size_t i = 0; readers == Readers::both && i < y.size(); ++i) y[i] += sum[i];
                      return y;
                    }});
    }
}

TEST(Layernorm, PassesTheOpCase) {
  check_op(
      {.name = "layernorm",
       .inputs = {{.shape = {67, 40}, .offset = 0.5},
                  {.shape = {40}, .kind = parameter, .scale = 0.3, .offset = 1},
                  {.shape = {40}, .kind = parameter}},
       .build = [](Tape& t, const std::vector<Var>& v) { return layernorm(t, v[0], v[1], v[2], 1e-5f); },
       .oracle = [](const std::vector<Values>& v) { return oracle::layernorm(v[0], v[1], v[2], 40, 1e-5); }});
}

TEST(Rmsnorm, NamesTheShapesItWanted) {
  TestBed bed;
  const Tensor x = bed.inputs.alloc({4, 8}, DType::f32), w = bed.inputs.alloc({7}, DType::f32);
  try {
    rmsnorm(bed.tape, bed.tape.input(x), bed.tape.input(w), 1e-6f);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[rmsnorm] weight must be f32 (8) or (1), got f32 (7); x is f32 (4, 8)");
  }
}
