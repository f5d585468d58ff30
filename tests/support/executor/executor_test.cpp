// The executor itself: planted mistakes must be found, and what it computes must be what CUDA documents.

#include "tests/support/executor/executor.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/device.h"
#include "tests/support/executor/memory.h"
#include "tests/support/executor/sanitizers.h"
#include "tests/support/refusal.h"

namespace osprey::cuda {

namespace {

using test::refusal;

/// A GPU with a stream, and memory on it that goes away with it.
class Executor : public testing::Test {
 protected:
  void SetUp() override { executor::set_seed(1); }
  void TearDown() override {
    for (void* p : memory_) cudaFree(p);
    executor::set_device_count(1);
  }
  template <class T>
  T* make(int64_t count) {
    void* p = nullptr;
    check(cudaMalloc(&p, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
    memory_.push_back(p);
    return static_cast<T*>(p);
  }
  template <class T>
  T* make(const std::vector<T>& values) {
    T* p = make<T>(static_cast<int64_t>(values.size()));
    check(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    return p;
  }
  template <class T>
  std::vector<T> read(const T* p, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    check(cudaMemcpy(values.data(), p, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
  cudaStream_t stream() { return handle_->handle(); }

  kernels::StreamHandle handle_ = kernels::open_stream({DeviceKind::cuda, 0});
  Queue queue_{.device = {DeviceKind::cuda, 0}, .stream = handle_.get()};

 private:
  std::vector<void*> memory_;
};

bool is_poison(float v) { return __float_as_uint(v) == 0xffffffffu; }

// Order and barriers.

struct Row256 {
  float v[256];
};

template <bool Synchronised>
__global__ void reverse(float* out) {
  Row256& s = block_shared<Row256>();
  const unsigned t = threadIdx.x;
  s.v[t] = static_cast<float>(t);
  if (Synchronised) __syncthreads();
  out[t] = s.v[255 - t];
}

TEST_F(Executor, MissingBarrierShowsPoisonThatDependsOnTheSeed) {
  float* out = make<float>(256);
  std::vector<std::vector<float>> results;
  for (const uint64_t seed : {1, 2, 1}) {
    executor::set_seed(seed);
    launch("reverse", queue_, {1, 256, sizeof(Row256)}, reverse<false>, out);
    results.push_back(read(out, 256));
  }
  EXPECT_GT(std::count_if(results[0].begin(), results[0].end(), is_poison), 20);
  const auto same = [&](size_t a, size_t b) {
    return memcmp(results[a].data(), results[b].data(), sizeof(Row256)) == 0;
  };
  EXPECT_FALSE(same(0, 1));
  EXPECT_TRUE(same(0, 2)) << "one seed, one order";

  launch("reverse", queue_, {1, 256, sizeof(Row256)}, reverse<true>, out);
  const auto right = read(out, 256);
  for (int t = 0; t < 256; ++t) EXPECT_EQ(right[static_cast<size_t>(t)], 255 - t);
}

/// block_sum() without its second barrier, twice.
__global__ void hurried_sums(float* out) {
  Row256& s = block_shared<Row256>();
  float total[2];
  for (int round = 0; round < 2; ++round) {
    const float v = warp_sum(static_cast<float>(round + 1));
    if (threadIdx.x % 32 == 0) s.v[threadIdx.x / 32] = v;
    __syncthreads();
    total[round] = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total[round] += s.v[w];
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = total[0];
}

TEST_F(Executor, SharedMemoryThatIsReusedTooEarlyIsSeen) {
  float* out = make<float>(8 * 256);
  launch("hurried", queue_, {8, 256, sizeof(Row256)}, hurried_sums, out);
  int wrong = 0;
  for (const float v : read(out, 8 * 256)) wrong += v != 256.0f;
  EXPECT_GT(wrong, 50);
}

__global__ void block_sums(const float* in, float* out) {
  float* room = block_shared<Row256>().v;
  const float first = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x], room);
  const double second = block_sum(2.0, reinterpret_cast<double*>(room));
  if (threadIdx.x == 0) out[blockIdx.x] = first + static_cast<float>(second);
}

TEST_F(Executor, BlockSumIsRightUnderManySeeds) {
  std::vector<float> values(10 * 256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 100);
  const float* in = make(values);
  float* out = make<float>(10);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    executor::set_seed(seed);
    launch("sums", queue_, {10, 256, sizeof(Row256)}, block_sums, in, out);
    const auto sums = read(out, 10);
    for (size_t b = 0; b < 10; ++b) {
      float expected = 512;
      for (size_t i = 0; i < 256; ++i) expected += values[b * 256 + i];
      EXPECT_EQ(sums[b], expected) << seed;
    }
  }
}

__global__ void note_blocks(int* order, int* count) {
  if (threadIdx.x == 0) order[atomicAdd(count, 1)] = static_cast<int>(blockIdx.x + gridDim.x * blockIdx.y);
}

TEST_F(Executor, EveryBlockRunsOnceInAnOrderOfTheSeed) {
  std::set<std::vector<int>> orders;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    executor::set_seed(seed);
    int* order = make<int>(12);
    int* count = make(std::vector<int>{0});
    launch("blocks", queue_, {dim3(4, 3), 2}, note_blocks, order, count);
    orders.insert(read(order, 12));
    const auto seen = read(order, 12);
    EXPECT_EQ(std::set<int>(seen.begin(), seen.end()).size(), 12u);
  }
  EXPECT_GT(orders.size(), 2u);
}

__global__ void coordinates(int* out) {
  const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  __syncwarp();
  out[t] = static_cast<int>(t % 32) - executor::lane();
}

TEST_F(Executor, ThreadsOfThreeDimensionsAreNumberedAsOnAGpu) {
  int* out = make<int>(64);
  launch("coordinates", queue_, {1, dim3(4, 8, 2)}, coordinates, out);
  EXPECT_EQ(read(out, 64), std::vector<int>(64, 0));
}

// Threads that wait for others who do not come.

__global__ void barrier_for_some() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void shuffle_for_some(unsigned mask, int* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = __shfl_sync(mask, 1, 0);
}
__global__ void shuffle_against_vote() {
  if (threadIdx.x < 16)
    __syncwarp();
  else
    __ballot_sync(full_warp, 1);
}
__global__ void float_against_double() {
  if (threadIdx.x < 16)
    warp_sum(1.0f);
  else
    warp_sum(1.0);
}
__global__ void barrier_against_shuffle() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __shfl_sync(full_warp, threadIdx.x == 40 ? 1 : 2, 0), __syncthreads(), __syncwarp(1u << threadIdx.x % 32),
        __syncthreads();
}

TEST_F(Executor, WaitingForThreadsThatNeverComeIsAnError) {
  const auto run = [&](void (*kernel)(), unsigned threads) {
    return refusal([&] { launch("softmax", queue_, {dim3(1, 2), threads}, kernel); });
  };
  std::string text = run(barrier_for_some, 64);
  EXPECT_NE(text.find("[softmax] "), std::string::npos) << text;
  EXPECT_NE(text.find("thread (0, 0, 0) waits at __syncthreads() (tests/support/executor/executor_test.cpp:"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("with 31 others, but thread 32 has finished"), std::string::npos) << text;
  text = run(two_barriers, 64);
  EXPECT_NE(text.find("but thread"), std::string::npos) << text;
  EXPECT_NE(run(shuffle_against_vote, 32).find("waits at __"), std::string::npos);
  EXPECT_NE(run(float_against_double, 32).find("waits at __shfl_xor_sync"), std::string::npos);
  text = run(barrier_against_shuffle, 64);
  EXPECT_NE(text.find("waits at __syncthreads()"), std::string::npos) << text;

  int* out = make<int>(32);
  const auto shuffle = [&](unsigned threads, unsigned mask) {
    return refusal([&] { launch("shuffle", queue_, {1, threads}, shuffle_for_some, mask, out); });
  };
  EXPECT_NE(shuffle(32, full_warp).find("thread 5 has finished"), std::string::npos)
      << shuffle(32, full_warp);
  EXPECT_NE(shuffle(16, full_warp & ~32u).find("there is no thread 16"), std::string::npos);
  EXPECT_NE(shuffle(32, 1).find("is not in 0x1"), std::string::npos) << shuffle(32, 1);
  EXPECT_EQ(shuffle(32, full_warp & ~32u), "accepted");
}

__global__ void trap_in_thread(unsigned block, unsigned thread) {
  __syncthreads();
  if (blockIdx.x == block && threadIdx.x == thread) __trap();
  __syncthreads();
}

TEST_F(Executor, ATrapNamesItsThreadAndTheNextLaunchIsUnharmed) {
  const std::string text = refusal([&] { launch("trap", queue_, {5, 96}, trap_in_thread, 3u, 70u); });
  EXPECT_NE(text.find("[trap] block (3, 0, 0), thread (70, 0, 0) trapped"), std::string::npos) << text;
  EXPECT_NE(text.find("seed 1"), std::string::npos) << text;
  EXPECT_EQ(refusal([&] { launch("trap", queue_, {5, 96}, trap_in_thread, 5u, 70u); }), "accepted");
}

TEST_F(Executor, RefusesWhatAGpuRefuses) {
  const auto grid = [&](const Grid& g) {
    return refusal([&] { launch("grid", queue_, g, barrier_for_some); });
  };
  EXPECT_NE(grid({1, 1025}).find("1 to 1024"), std::string::npos);
  EXPECT_NE(grid({1, 0}).find("1 to 1024"), std::string::npos);
  EXPECT_NE(grid({dim3(1, 65536), 32}).find("65535"), std::string::npos);
  EXPECT_NE(grid({1, 32, 227 * 1024 + 1}).find("shared memory"), std::string::npos);
  EXPECT_EQ(grid({1, 32, 227 * 1024}), "accepted");
  EXPECT_EQ(grid({0, 32}), "accepted") << "nothing to do";
}

TEST_F(Executor, RefusesPointersToHostMemoryAmongTheArguments) {
  std::vector<float> host(256);
  const std::string text = refusal([&] {
    launch("reverse", queue_, {1, 256, 1024}, reverse<true>, host.data());
  });
  EXPECT_NE(text.find("argument 0 of the kernel holds a pointer to host memory"), std::string::npos) << text;
  void* locked = nullptr;
  check(cudaHostAlloc(&locked, 1024, cudaHostAllocDefault), "cudaHostAlloc");
  EXPECT_EQ(refusal([&] {
              launch("reverse", queue_, {1, 256, 1024}, reverse<true>, static_cast<float*>(locked));
            }),
            "accepted");
  EXPECT_EQ(static_cast<float*>(locked)[3], 252.0f);
  cudaFreeHost(locked);
}

struct Padded {
  float* p;
  float v;  // and four bytes of nothing
};
__global__ void fill_padded(Padded a) { *a.p = a.v; }

TEST_F(Executor, TakesNoPaddingForAPointer) {
  const auto host = std::make_unique<char[]>(1 << 20);
  const auto address = reinterpret_cast<uint64_t>(host.get() + 4096);
  alignas(Padded) unsigned char bytes[sizeof(Padded)];
  float* p = make<float>(1);
  memcpy(bytes, &p, 8);
  memcpy(bytes + 8, &address, 8);
  Padded argument;
  memcpy(&argument, bytes, sizeof argument);
  EXPECT_EQ(refusal([&] { launch("padded", queue_, {1, 1}, fill_padded, argument); }), "accepted");
}

// Memory.

__global__ void write_shared(int at) { block_shared<Row256>().v[at] = 1; }
__global__ void write_global(float* p, int64_t at) { p[at] = 1; }
__global__ void read_global(const float* p, int64_t at, float* out) { *out = p[at]; }

using ExecutorDeathTest = Executor;

TEST_F(ExecutorDeathTest, OverrunOfSharedMemoryIsReported) {
  const auto run = [&](int at) {
    return refusal([&] { launch("overrun", queue_, {1, 1, sizeof(Row256)}, write_shared, at); });
  };
  EXPECT_EQ(run(255), "accepted");
  if (executor::under_asan) {
    EXPECT_DEATH(run(256), "use-after-poison");
    EXPECT_DEATH(run(-1), "use-after-poison");
  } else {
    EXPECT_NE(run(256).find("byte 1024 of 1024 bytes of shared memory was written"), std::string::npos)
        << run(256);
    EXPECT_NE(run(-1).find("before shared memory was written"), std::string::npos) << run(-1);
  }
  EXPECT_NE(refusal([&] {
              launch("small", queue_, {1, 1, 1020}, write_shared, 0);
            }).find("takes 1024 bytes of shared memory, launched with 1020"),
            std::string::npos);
}

TEST_F(ExecutorDeathTest, OverrunOfGlobalMemoryIsReported) {
  float* p = make<float>(100);
  const auto run = [&](int64_t at) {
    return refusal([&] { launch("overrun", queue_, {1, 1}, write_global, p, at); });
  };
  EXPECT_EQ(run(99), "accepted");
  if (executor::under_asan)
    EXPECT_DEATH(run(100), "use-after-poison");
  else
    EXPECT_NE(run(100).find("[overrun] byte 400 of an allocation of 400 bytes was written"),
              std::string::npos);
  EXPECT_DEATH(run(1024), "\\[overrun\\] block \\(0, 0, 0\\), thread \\(0, 0, 0\\) touched device memory");
  EXPECT_DEATH(run(-1), "touched device memory that is not allocated");
}

TEST_F(ExecutorDeathTest, HostCodeThatTouchesDeviceMemoryDies) {
  float* p = make<float>(100);
  EXPECT_DEATH(*static_cast<volatile float*>(p) = 1,
               "host code touched device memory: address .*, GPU 0, byte 0 from the start of 400 bytes");
  launch("write", queue_, {1, 1}, write_global, p, int64_t{1});
  EXPECT_DEATH(*static_cast<volatile float*>(p) = 1, "host code touched device memory");
}

TEST_F(ExecutorDeathTest, FreedMemoryIsGone) {
  void* p = nullptr;
  check(cudaMalloc(&p, 400), "cudaMalloc");
  check(cudaFree(p), "cudaFree");
  float* out = make<float>(1);
  EXPECT_DEATH(launch("late", queue_, {1, 1}, read_global, static_cast<float*>(p), int64_t{0}, out),
               "\\[late\\]");
  EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST_F(ExecutorDeathTest, MemoryOfAnotherGpuIsOutOfReach) {
  executor::set_device_count(2);
  cudaSetDevice(1);
  float* p = make<float>(1);
  EXPECT_NE(refusal([&] {
              launch("elsewhere", queue_, {1, 1}, write_global, p, int64_t{0});
            }).find("is of GPU 0"),
            std::string::npos);
  cudaSetDevice(0);
  EXPECT_DEATH(launch("elsewhere", queue_, {1, 1}, write_global, p, int64_t{0}), "not on its GPU");
}

TEST_F(Executor, FreshMemoryIsPoisonSmallAndLarge) {
  for (const int64_t count : {3, 1000, 3 << 20}) {
    const auto values = read(make<float>(count), count);
    EXPECT_EQ(std::count_if(values.begin(), values.end(), is_poison), count);
  }
}

TEST_F(Executor, ZeroingMuchMemoryZeroesAllOfItAndNoMore) {
  const int64_t count = 5 << 20;
  float* p = make<float>(count);
  check(cudaMemset(p + 3, 0, static_cast<size_t>(count - 8) * 4), "cudaMemset");
  const auto values = read(p, count);
  EXPECT_EQ(std::count(values.begin(), values.end(), 0.0f), count - 8);
  EXPECT_TRUE(is_poison(values[2]) && is_poison(values[static_cast<size_t>(count) - 5]));
}

TEST_F(Executor, CopiesCheckBothEnds) {
  float* p = make<float>(4);
  std::vector<float> host(8);
  EXPECT_EQ(cudaMemcpy(p, host.data(), 16, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(p, host.data(), 20, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(p, host.data(), 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), p + 1, 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 0, 4), cudaErrorInvalidValue);
}

/// Eats stack without end.
__global__ void deep(float* out, int depth) {
  volatile float room[64];
  room[depth % 64] = static_cast<float>(depth);
  if (depth > 0) deep(out, depth - 1);
  *out = room[depth % 64];
}

TEST_F(ExecutorDeathTest, AnOverflowingStackIsNamed) {
  float* out = make<float>(1);
  EXPECT_DEATH(launch("deep", queue_, {1, 1}, deep, out, 100000), "needs more stack|stack-overflow");
}

// Warps.

struct Shuffles {
  int up, down, bits, segment;
  float broadcast;
  int64_t wide;
  double real;
  unsigned ballot;
  int any, all;
};

__global__ void shuffles(Shuffles* out) {
  const int lane = static_cast<int>(threadIdx.x);
  Shuffles s;
  s.up = __shfl_up_sync(full_warp, lane, 3);
  s.down = __shfl_down_sync(full_warp, lane, 5, 16);
  s.bits = __shfl_xor_sync(full_warp, lane, 6);
  s.segment = __shfl_sync(full_warp, lane, 2, 8);
  s.broadcast = __shfl_sync(full_warp, static_cast<float>(lane) + 0.5f, 9);
  s.wide = __shfl_sync(full_warp, static_cast<int64_t>(lane) << 40, 31);
  s.real = __shfl_xor_sync(full_warp, static_cast<double>(lane), 1);
  s.ballot = __ballot_sync(full_warp, lane % 3 == 0);
  s.any = __any_sync(full_warp, lane == 17);
  s.all = __all_sync(full_warp, lane == 17);
  if (lane % 2 == 0)  // half a warp, too
    s.all += __shfl_sync(0x55555555u, lane, 4) + 10 * (__ballot_sync(0x55555555u, lane < 3) == 5u);
  out[lane] = s;
}

TEST_F(Executor, ShufflesAndVotesAreThoseOfAWarp) {
  Shuffles* out = make<Shuffles>(32);
  launch("shuffles", queue_, {1, 32}, shuffles, out);
  const auto lanes = read(out, 32);
  for (int l = 0; l < 32; ++l) {
    const Shuffles& s = lanes[static_cast<size_t>(l)];
    EXPECT_EQ(s.up, l < 3 ? l : l - 3);
    EXPECT_EQ(s.down, l % 16 + 5 < 16 ? l + 5 : l);
    EXPECT_EQ(s.bits, l ^ 6);
    EXPECT_EQ(s.segment, l / 8 * 8 + 2);
    EXPECT_EQ(s.broadcast, 9.5f);
    EXPECT_EQ(s.wide, int64_t{31} << 40);
    EXPECT_EQ(s.real, l ^ 1);
    EXPECT_EQ(s.ballot, 0x49249249u);
    EXPECT_EQ(s.any, 1);
    EXPECT_EQ(s.all, l % 2 == 0 ? 14 : 0);
  }
}

__global__ void read_absent_lane(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

TEST_F(Executor, ALaneThatTakesNoPartGivesPoison) {
  float* out = make<float>(16);
  launch("absent", queue_, {1, 32}, read_absent_lane, out);
  for (const float v : read(out, 16)) EXPECT_TRUE(is_poison(v));
}

// ptx.h.

struct alignas(16) Tile {
  bf16 v[16][16];
};

/// d (16, 8) = a (16, 16) b (16, 8), with fragments filled as the comment of mma_bf16_16x8x16 says.
__global__ void multiply(const bf16* a, const bf16* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](bf16 low, bf16 high) { return uint32_t{high.bits} << 16 | low.bits; };
  const auto from_a = [&](int row, int col) { return pair(a[row * 16 + col], a[row * 16 + col + 1]); };
  const auto from_b = [&](int row) { return pair(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  const uint32_t left[4] = {from_a(g, 2 * t), from_a(g + 8, 2 * t), from_a(g, 2 * t + 8),
                            from_a(g + 8, 2 * t + 8)};
  const uint32_t right[2] = {from_b(2 * t), from_b(2 * t + 8)};
  float sum[4] = {1, 1, 1, 1};
  mma_bf16_16x8x16(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

std::vector<bf16> random_bf16(uint64_t stream, int64_t count) {
  std::vector<bf16> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(to_bf16(random_normal(7, stream, static_cast<uint64_t>(i))));
  return values;
}

TEST_F(Executor, MmaIsAProductOfMatrices) {
  const auto a = random_bf16(1, 256), b = random_bf16(2, 128);
  float* d = make<float>(128);
  launch("mma", queue_, {1, 32}, multiply, static_cast<const bf16*>(make(a)),
         static_cast<const bf16*>(make(b)), d);
  const auto product = read(d, 128);
  for (size_t row = 0; row < 16; ++row)
    for (size_t col = 0; col < 8; ++col) {
      double expected = 1;
      for (size_t k = 0; k < 16; ++k)
        expected +=
            static_cast<double>(to_float(a[row * 16 + k])) * static_cast<double>(to_float(b[k * 8 + col]));
      EXPECT_NEAR(product[row * 8 + col], expected, 1e-6) << row << " " << col;
    }
}

/// The same with both operands by way of shared memory and load_matrix: b is stored (8, 16), column by
/// column, or (16, 8) and transposed on the way.
template <bool Transposed>
__global__ void multiply_by_tiles(const bf16* a, const bf16* b, float* d) {
  Tile* tiles = block_shared<Tile[2]>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tiles[0].v[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32)
    if (Transposed)
      tiles[1].v[i / 8][i % 8] = b[i];
    else
      tiles[1].v[i % 8][i / 8] = b[i];
  __syncwarp();
  uint32_t left[4], right[4];
  load_matrix_x4(left, &tiles[0].v[lane % 16][lane / 16 * 8]);
  if (Transposed)
    load_matrix_x4_transposed(right, &tiles[1].v[lane % 16][0]);
  else
    load_matrix_x4(right, &tiles[1].v[lane % 8][lane / 8 % 2 * 8]);
  float sum[4] = {1, 1, 1, 1};
  const uint32_t halves[2] = {right[0], right[1]};
  mma_bf16_16x8x16(sum, left, halves);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

TEST_F(Executor, LoadMatrixFillsTheFragmentsOfMma) {
  const bf16* a = make(random_bf16(1, 256));
  const bf16* b = make(random_bf16(2, 128));
  float* d = make<float>(128);
  launch("mma", queue_, {1, 32}, multiply, a, b, d);
  const auto expected = read(d, 128);
  launch("tiles", queue_, {1, 32, sizeof(Tile[2])}, multiply_by_tiles<false>, a, b, d);
  EXPECT_EQ(read(d, 128), expected);
  launch("tiles", queue_, {1, 32, sizeof(Tile[2])}, multiply_by_tiles<true>, a, b, d);
  EXPECT_EQ(read(d, 128), expected);
}

/// Element e of the 8 (row, col) = 8 row + col of matrix i is 64 i + e; every lane writes the eight it
/// received.
template <bool Transposed>
__global__ void matrices(uint16_t* out) {
  struct alignas(16) Rows {
    uint16_t v[32][8];
  };
  Rows& s = block_shared<Rows>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = 0; i < 8; ++i) s.v[lane][i] = static_cast<uint16_t>(8 * lane + i);
  __syncwarp();
  uint32_t r[4];
  if (Transposed)
    load_matrix_x4_transposed(r, s.v[lane]);
  else
    load_matrix_x4(r, s.v[lane]);
  for (unsigned i = 0; i < 8; ++i) out[8 * lane + i] = static_cast<uint16_t>(r[i / 2] >> 16 * (i % 2));
}

TEST_F(Executor, LoadMatrixHandsOutElementsAsDocumented) {
  uint16_t* out = make<uint16_t>(256);
  for (const bool transposed : {false, true}) {
    launch("matrices", queue_, {1, 32, 512}, transposed ? matrices<true> : matrices<false>, out);
    const auto got = read(out, 256);
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 8; ++i) {
        const int pair = 2 * (l % 4) + i % 2, other = l / 4;
        const int row = transposed ? pair : other, col = transposed ? other : pair;
        EXPECT_EQ(got[static_cast<size_t>(8 * l + i)], 64 * (i / 2) + 8 * row + col) << l << " " << i;
      }
  }
}

struct alignas(16) Staged {
  float v[3][4];
};

/// Three groups of one copy, and what is there after waiting for all but `Pending`.
template <int Pending, bool Committed>
__global__ void copy_groups(const float* in, float* out) {
  Staged& s = block_shared<Staged>();
  for (int i = 0; i < 12; ++i) s.v[i / 4][i % 4] = 100;  // still in use when the copy begins?
  for (int i = 0; i < 3; ++i) {
    copy_async_16(s.v[i], in + 4 * i, i != 1);
    if (Committed) copy_async_commit();
  }
  copy_async_wait<Pending>();
  for (int i = 0; i < 12; ++i) out[i] = s.v[i / 4][i % 4];
}

TEST_F(Executor, AsyncCopiesArriveWhenTheirGroupIsWaitedFor) {
  const float* in = make(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  float* out = make<float>(12);
  const auto poisoned = [&](void (*kernel)(const float*, float*)) {
    launch("copies", queue_, {1, 1, sizeof(Staged)}, kernel, in, out);
    const auto values = read(out, 12);
    const auto count = std::count_if(values.begin(), values.end(), is_poison);
    for (size_t i = 0; i < 12 - static_cast<size_t>(count); ++i)
      EXPECT_EQ(values[i], i / 4 == 1 ? 0.0f : static_cast<float>(i + 1)) << i;
    return count;
  };
  EXPECT_EQ((poisoned(copy_groups<0, true>)), 0);
  EXPECT_EQ((poisoned(copy_groups<1, true>)), 4);
  EXPECT_EQ((poisoned(copy_groups<2, true>)), 8);
  EXPECT_EQ((poisoned(copy_groups<3, true>)), 12);
  EXPECT_EQ((poisoned(copy_groups<0, false>)), 12) << "a group that is not closed is not waited for";
}

__global__ void copy_crooked(const float* in, int to, int from) {
  copy_async_16(reinterpret_cast<float*>(&block_shared<Staged>()) + to, in + from);
}

TEST_F(Executor, AsyncCopiesCheckAlignmentAndRoom) {
  const float* in = make(std::vector<float>(12));
  const auto run = [&](int to, int from) {
    return refusal([&] { launch("copy", queue_, {1, 1, sizeof(Staged)}, copy_crooked, in, to, from); });
  };
  EXPECT_EQ(run(4, 8), "accepted");
  EXPECT_NE(run(1, 8).find("no multiple of 16"), std::string::npos);
  EXPECT_NE(run(4, 2).find("no multiple of 16"), std::string::npos);
  EXPECT_NE(run(12, 0).find("not all in shared memory"), std::string::npos);
}

TEST_F(Executor, SmallFunctionsOfPtx) {
  EXPECT_EQ(pack_bf16x2(1.0f, -2.0f), 0xc0003f80u);
  EXPECT_EQ(fast_exp2(-3.0f), 0.125f);
  EXPECT_EQ(fast_exp2(-130.0f), 0.0f) << "denormals are flushed";
  const float4 v = make_float4(1, 2, 3, 4);
  float4 w{};
  store_streaming(&w, load_streaming(&v));
  EXPECT_EQ(w.w, 4.0f);
}

__global__ void small_functions(float* out) {
  out[0] = __uint_as_float(__float_as_uint(-1.5f)) + __int_as_float(__float_as_int(0.5f));
  out[1] = rsqrtf(16.0f) + __fdividef(1.0f, 4.0f) + __expf(0.0f) + __logf(1.0f);
  out[2] = static_cast<float>(__popc(0xf0f0u) + 100 * __ffs(8) + 1000 * __clz(1));
  out[3] = static_cast<float>(min(3, -2) + max(3u, 7u)) + min(2.5f, 9.0f);
  unsigned long long wide = 1ull << 40;
  int highest = -4;
  out[4] = static_cast<float>((atomicAdd(&wide, 5ull) >> 40) + (wide & 7));
  out[5] = static_cast<float>(atomicMax(&highest, -6) * 10 + atomicMax(&highest, 3) * 100 + highest);
  __threadfence();
  out[6] = __ldg(out);
}

TEST_F(Executor, SmallFunctionsOfCuda) {
  float* out = make<float>(7);
  launch("small", queue_, {1, 1}, small_functions, out);
  EXPECT_EQ(read(out, 7), (std::vector<float>{-1, 1.5f, 31408, 7.5f, 6, -437, -1}));
}

// Streams, events, captures.

__global__ void add(float* p, float v) { p[threadIdx.x] += v; }

TEST_F(Executor, GraphsReplayWhatWasCapturedWithTheValuesOfThen) {
  float* p = make(std::vector<float>(32, 1.0f));
  void* locked = nullptr;
  check(cudaHostAlloc(&locked, 128, cudaHostAllocDefault), "cudaHostAlloc");
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin");
  float v = 2;
  launch("add", queue_, {1, 32}, add, p, v);
  v = 100;
  check(cudaMemcpyAsync(locked, p, 128, cudaMemcpyDeviceToHost, stream()), "copy");
  executor::run_on_device(stream(), [p] { p[0] *= 2; });
  cudaGraph_t graph;
  check(cudaStreamEndCapture(stream(), &graph), "end");
  EXPECT_EQ(read(p, 1)[0], 1.0f) << "nothing runs while it is captured";
  cudaGraphExec_t exec;
  check(cudaGraphInstantiate(&exec, graph), "instantiate");
  check(cudaGraphDestroy(graph), "destroy");
  for (int i = 0; i < 2; ++i) check(cudaGraphLaunch(exec, stream()), "launch");
  EXPECT_EQ(read(p, 2), (std::vector<float>{16, 5}));
  EXPECT_EQ(static_cast<float*>(locked)[0], 8.0f);
  check(cudaGraphExecDestroy(exec), "destroy");
  cudaFreeHost(locked);
}

TEST_F(Executor, CaptureRefusesToWaitAndToAllocate) {
  std::vector<float> host(4);
  float* p = make<float>(4);
  cudaEvent_t event;
  check(cudaEventCreate(&event), "event");
  const std::vector<std::pair<cudaError_t, std::function<cudaError_t()>>> calls = {
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream()); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaDeviceSynchronize(); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaMemset(p, 0, 4); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaEventQuery(event); }},
      {cudaErrorCapturedEvent, [&] { return cudaEventRecord(event, stream()), cudaEventSynchronize(event); }},
      {cudaErrorStreamCaptureUnsupported, [&] {
         void* more;
         return cudaMalloc(&more, 4);
       }}};
  for (size_t i = 0; i < calls.size(); ++i) {
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin");
    EXPECT_EQ(calls[i].second(), calls[i].first) << i;
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream(), &status), "status");
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated) << i;
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamEndCapture(stream(), &graph), cudaErrorStreamCaptureInvalidated) << i;
    check(cudaEventRecord(event, stream()), "record");
  }
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin");
  EXPECT_EQ(cudaMemcpyAsync(p, host.data(), 16, cudaMemcpyHostToDevice, stream()),
            cudaErrorStreamCaptureUnsupported);
  std::thread([] {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << "only the thread that captures";
  }).join();
  cudaGraph_t graph;
  EXPECT_EQ(cudaStreamEndCapture(stream(), &graph), cudaSuccess);
  cudaGraphDestroy(graph);
  cudaEventDestroy(event);
  cudaGetLastError();
}

TEST_F(Executor, ARelaxedCaptureRefusesOnlyWhatConcernsItsOwnStream) {
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "begin");
  float* p = make<float>(4);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream()), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaMemsetAsync(p, 0, 4, stream()), cudaErrorStreamCaptureInvalidated);
  cudaGraph_t graph;
  EXPECT_EQ(cudaStreamEndCapture(stream(), &graph), cudaErrorStreamCaptureInvalidated);
  cudaGetLastError();
}

TEST_F(Executor, OtherStreamsJoinACaptureByEventsAndMustComeBack) {
  float* p = make(std::vector<float>(32, 1.0f));
  const kernels::StreamHandle other = kernels::open_stream({DeviceKind::cuda, 0});
  const Queue side{.device = {DeviceKind::cuda, 0}, .stream = other.get()};
  cudaEvent_t fork, join, outside;
  for (cudaEvent_t* e : {&fork, &join, &outside}) check(cudaEventCreate(e), "event");
  for (const bool comes_back : {true, false}) {
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin");
    launch("add", queue_, {1, 32}, add, p, 1.0f);
    check(cudaEventRecord(fork, stream()), "record");
    check(cudaStreamWaitEvent(other->handle(), fork), "wait");
    launch("add", side, {1, 32}, add, p, 2.0f);
    check(cudaEventRecord(join, other->handle()), "record");
    if (comes_back) check(cudaStreamWaitEvent(stream(), join), "wait");
    cudaGraph_t graph;
    EXPECT_EQ(cudaStreamEndCapture(stream(), &graph),
              comes_back ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(cudaStreamSynchronize(other->handle()), cudaSuccess) << "the side stream is free again";
    if (!comes_back) continue;
    cudaGraphExec_t exec;
    check(cudaGraphInstantiate(&exec, graph), "instantiate");
    check(cudaGraphLaunch(exec, stream()), "launch");
    EXPECT_EQ(read(p, 1)[0], 4.0f);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
  }
  check(cudaEventRecord(outside, other->handle()), "record");
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin");
  EXPECT_EQ(cudaStreamWaitEvent(stream(), outside), cudaErrorStreamCaptureIsolation);
  cudaGraph_t graph;
  EXPECT_EQ(cudaStreamEndCapture(stream(), &graph), cudaErrorStreamCaptureInvalidated);
  for (cudaEvent_t e : {fork, join, outside}) cudaEventDestroy(e);
  cudaGetLastError();
}

TEST_F(Executor, EventsMeasureTime) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&end), "event");
  check(cudaEventRecord(start, stream()), "record");
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  check(cudaEventRecord(end, stream()), "record");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, start, end), "elapsed");
  EXPECT_GE(ms, 5.0f);
  cudaEventDestroy(start);
  cudaEventDestroy(end);
}

TEST_F(Executor, HostThreadsLaunchSideBySide) {
  executor::set_device_count(4);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank)
    ranks.emplace_back([rank] {
      const kernels::StreamHandle mine = kernels::open_stream({DeviceKind::cuda, rank});
      const Queue queue{.device = {DeviceKind::cuda, rank}, .stream = mine.get()};
      void* p = nullptr;
      check(cudaMalloc(&p, 40), "cudaMalloc");
      for (int i = 0; i < 10; ++i) {
        launch("zero", queue, {10, 256, sizeof(Row256)}, block_sums,
               static_cast<const float*>(mine->scratch(10240)), static_cast<float*>(p));
        launch("write", queue, {1, 1}, write_global, static_cast<float*>(p), int64_t{0});
      }
      float v = 0;
      check(cudaMemcpy(&v, p, 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
      EXPECT_EQ(v, 1.0f);
      check(cudaFree(p), "cudaFree");
    });
  for (std::thread& t : ranks) t.join();
}

}  // namespace

}  // namespace osprey::cuda
