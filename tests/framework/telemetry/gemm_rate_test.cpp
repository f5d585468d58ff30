#include "framework/telemetry/gemm_rate.h"

#include <gtest/gtest.h>

namespace osprey {
namespace {

TEST(GemmRate, IsARateThatAnyMachineOfThisCenturyReaches) {
  const auto world = make_self_comm();
  const double rate = measure_gemm_rate(Queue{}, *world, 0.02);
  EXPECT_GT(rate, 1e8);
  EXPECT_LT(rate, 1e16);
}

}  // namespace
}  // namespace osprey
