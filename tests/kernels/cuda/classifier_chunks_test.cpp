#include "kernels/cuda/classifier_chunks.h"

#include <gtest/gtest.h>

#include "tests/support/on_device.h"

namespace osprey {
namespace {

using cuda::ClassifierChunks;
using test::Buffer;
using test::OnDevice;

TEST(ClassifierChunks, AreEvenAndFitTheirMemory) {
  const ClassifierChunks c = ClassifierChunks::of(16384, 50257);
  EXPECT_EQ(c.stride, 50304);
  EXPECT_EQ(c.rows, 2432);  // seven chunks of at most 2560
  EXPECT_LE(c.rows * c.stride * 4, ClassifierChunks::most_bytes);
  EXPECT_EQ(ClassifierChunks::of(100, 50257).rows, 100);
  EXPECT_EQ(ClassifierChunks::of(4096, 8192).rows, 4096);
  EXPECT_EQ(ClassifierChunks::of(0, 8192).rows, 0);
  EXPECT_EQ(ClassifierChunks::of(300, int64_t{1} << 30).rows, 128);  // it must go on somehow
}

struct Results {
  Results(int64_t n, int64_t c, int64_t v)
      : dx({n, c}, DType::bf16), dweight({v, c}, DType::f32), losses({n}, DType::f32), sums({2}, DType::f64) {
    sums.fill_value(0);
  }
  Buffer dx, dweight, losses, sums;
};

TEST(ClassifierChunks, DoNotShowInTheResult) {
  if (test::test_queue().device.kind != DeviceKind::cuda)
    GTEST_SKIP() << "needs a GPU, or the executor that plays one: OSPREY_TEST_DEVICE=cuda";
  const int64_t n = 77, c = 24, v = 203;
  Buffer x({n, c}, DType::bf16), weight({v, c}, DType::bf16), targets({n}, DType::i32);
  x.fill(1);
  weight.fill(2);
  for (int64_t i = 0; i < n; ++i) targets.set(0, i, i % 6 == 1 ? -1 : i * 5 % v);
  Results whole(n, c, v), cut(n, c, v);
  for (Results* r : {&whole, &cut}) {
    ClassifierChunks chunks = ClassifierChunks::of(n, v);
    if (r == &cut) chunks.rows = 32;
    Buffer scratch({chunks.floats()}, DType::f32);
    OnDevice on;
    cuda::classifier(on.queue,
                     {.x = on(x),
                      .weight = on(weight),
                      .targets = on(targets),
                      .sums = on(r->sums),
                      .dx = on(r->dx),
                      .dweight = {on(r->dweight), false},
                      .token_losses = on(r->losses),
                      .scratch = on(scratch)},
                     chunks);
    on.fetch();
    EXPECT_TRUE(scratch.guards_intact());
  }
  for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(cut.losses.get(i), whole.losses.get(i), 1e-5);
  EXPECT_NEAR(cut.sums.get(0), whole.sums.get(0), 1e-4);
  EXPECT_EQ(cut.sums.get(1), whole.sums.get(1));
  for (int64_t i = 0; i < n * c; ++i) EXPECT_NEAR(cut.dx.get(i), whole.dx.get(i), 2e-2);
  for (int64_t i = 0; i < v * c; ++i) EXPECT_NEAR(cut.dweight.get(i), whole.dweight.get(i), 1e-4);
}

}  // namespace
}  // namespace osprey
