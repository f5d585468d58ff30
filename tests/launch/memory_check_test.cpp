#include "launch/memory_check.h"

#include <gtest/gtest.h>

namespace osprey {
namespace {

constexpr int64_t gib = int64_t{1} << 30;

TEST(MemoryCheck, WhatFitsIsNoProblem) {
  EXPECT_EQ(memory_problem({{"parameters", gib}, {"activations", gib}}, 4 * gib, 2, 4 * gib), "");
}

TEST(MemoryCheck, TheLargestCategoryAndItsKeysAreNamed) {
  const std::string text = memory_problem({{"parameters", gib}, {"activations", 9 * gib}, {"gradients", gib}},
                                          22 * gib, 2, 16 * gib);
  for (const char* part : {"22.00 GiB", "2 ranks", "16.00 GiB", "activations (9.00 GiB)",
                           "train.micro_batch_size", "train.recompute: block"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
  const std::string state =
      memory_problem({{"optimizer state", 9 * gib}, {"activations", gib}}, 10 * gib, 1, gib);
  EXPECT_NE(state.find("parallel.zero: 1"), std::string::npos) << state;
}

TEST(MemoryCheck, PagesOfFilesThatAreGivenBackOnDemandAreFree) {
  const std::string stat = "anon 3000\nfile 5000\ninactive_anon 7\nactive_file 1000\ninactive_file 4000\n";
  EXPECT_EQ(control_group_spare_bytes("10000\n", "8000\n", stat), 6000);
  EXPECT_EQ(control_group_spare_bytes("10000\n", "8000\n", ""), 2000);
  EXPECT_EQ(control_group_spare_bytes("10000\n", "8000\n", "inactive_file x\ninactive_file\n"), 2000);
  EXPECT_EQ(control_group_spare_bytes("10000\n", "3000\n", stat), 10000) << "read at different moments";
  EXPECT_EQ(control_group_spare_bytes("10000\n", "15000\n", stat), 0);
  EXPECT_EQ(control_group_spare_bytes("max\n", "8000\n", stat), INT64_MAX);
  EXPECT_EQ(control_group_spare_bytes("", "", ""), INT64_MAX);
}

TEST(MemoryCheck, ThisMachineHasSomeMemory) { EXPECT_GT(available_memory_bytes(), int64_t{16} << 20); }

}  // namespace
}  // namespace osprey
