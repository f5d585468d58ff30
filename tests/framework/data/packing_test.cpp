#include "framework/data/packing.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/core/random.h"

namespace osprey {
namespace {

/// First fit as one would write it down.
std::vector<std::vector<int32_t>> plain_first_fit(const std::vector<int32_t>& order,
                                                  const std::vector<int32_t>& lengths, int64_t capacity) {
  std::vector<std::vector<int32_t>> rows;
  std::vector<int64_t> room;
  for (const int32_t d : order) {
    size_t r = 0;
    while (r < rows.size() && room[r] < lengths[static_cast<size_t>(d)]) ++r;
    if (r == rows.size()) rows.emplace_back(), room.push_back(capacity);
    rows[r].push_back(d);
    room[r] -= lengths[static_cast<size_t>(d)];
  }
  return rows;
}

TEST(Packing, IsFirstFit) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<int32_t> lengths(1 + seed * 17), order(lengths.size());
    for (size_t i = 0; i < lengths.size(); ++i)
      lengths[i] = 1 + static_cast<int32_t>(random_u64(seed, 1, i) % 64);
    std::iota(order.rbegin(), order.rend(), 0);
    const PackedRows packed = pack(order, lengths, 64, Packing::first_fit);
    const auto plain = plain_first_fit(order, lengths, 64);
    ASSERT_EQ(packed.rows(), static_cast<int64_t>(plain.size()));
    for (int64_t r = 0; r < packed.rows(); ++r) {
      const auto row = packed.row(r);
      EXPECT_EQ(std::vector<int32_t>(row.begin(), row.end()), plain[static_cast<size_t>(r)]);
    }
  }
}

TEST(Packing, AloneIsADocumentARow) {
  const PackedRows packed =
      pack(std::vector<int32_t>{2, 0, 1}, std::vector<int32_t>{1, 1, 1}, 8, Packing::alone);
  ASSERT_EQ(packed.rows(), 3);
  EXPECT_EQ(packed.row(0)[0], 2);
  EXPECT_EQ(packed.row(2)[0], 1);
}

TEST(Packing, WhatDoesNotFitIsRefused) {
  EXPECT_THROW(pack(std::vector<int32_t>{0}, std::vector<int32_t>{9}, 8, Packing::first_fit), std::exception);
  EXPECT_EQ(pack({}, {}, 8, Packing::first_fit).rows(), 0);
}

}  // namespace
}  // namespace osprey
