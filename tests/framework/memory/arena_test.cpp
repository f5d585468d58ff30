#include "framework/memory/arena.h"

#include <gtest/gtest.h>

#include <cstring>

using namespace osprey;

TEST(Arena, IsAStackWithAHighWaterMark) {
  Arena a("test", {}, 1 << 20);
  const int64_t mark = a.mark();
  const Tensor x = a.alloc({100}, DType::f32), y = a.alloc({3, 5}, DType::bf16);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(y.data) % 64, 0u);
  EXPECT_NE(x.data, y.data);
  EXPECT_EQ(a.high_water_bytes(), 448 + 64);
  a.rewind(mark);
  EXPECT_EQ(a.used_bytes(), 0);
  EXPECT_EQ(a.alloc({100}, DType::f32).data, x.data);
  EXPECT_EQ(a.high_water_bytes(), 448 + 64);
}

TEST(Arena, SaysWhatDidNotFit) {
  Arena a("activations", {}, 1024);
  EXPECT_THROW(a.alloc({1024}, DType::f32), Error);
}

TEST(Arena, RefusesSizesBeyond64BitsInsteadOfWrappingAround) {
  Arena a("activations", {DeviceKind::meta, 0}, 0);
  EXPECT_THROW(a.alloc({int64_t{1} << 61}, DType::f32), Error);
  a.alloc({int64_t{1} << 59}, DType::f32);
  EXPECT_THROW(a.alloc({int64_t{1} << 60}, DType::f32), Error);
  EXPECT_EQ(a.high_water_bytes(), int64_t{1} << 61);
}

TEST(Arena, GuardZonesFindAnOverrun) {
  Arena a("test", {}, 1 << 20);
  a.enable_guards({});
  const Tensor t = a.alloc({5}, DType::f32);
  EXPECT_NO_THROW(a.check_guards());
  static_cast<char*>(t.data)[20] = 1;
  EXPECT_THROW(a.check_guards(), Error);
}

TEST(Arena, OnMetaCountsWithoutMemory) {
  Arena a("test", {DeviceKind::meta, 0}, 0);
  EXPECT_EQ(a.alloc({int64_t{1} << 40}, DType::f32).data, nullptr);
  EXPECT_EQ(a.high_water_bytes(), int64_t{4} << 40);
}

TEST(Pool, ReusesBuffersBySizeAndCountsReferences) {
  Pool pool("test", {});
  const int a = pool.acquire(5000);
  pool.retain(a);
  pool.release(a);
  EXPECT_EQ(pool.references(a), 1);
  const int b = pool.acquire(5000);
  EXPECT_NE(a, b);
  pool.release(a);
  EXPECT_EQ(pool.acquire(6000), a);  // both are two pages
  pool.release(b);
  EXPECT_THROW(pool.release(b), Error);
}
