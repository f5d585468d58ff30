// The communicator cases over MPI: run as `mpirun -np N mpi_tests`. A failure on any rank fails all.

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "framework/parallel/mpi_comm.h"
#include "framework/parallel/nccl_comm.h"
#include "tests/framework/parallel/comm_cases.h"
#include "tests/framework/parallel/mpi/count_allocations.h"
#include "tests/framework/parallel/on_device.h"

namespace osprey {
namespace {

Communicator* world = nullptr;

class Mpi : public testing::TestWithParam<comm_cases::Case> {};

TEST_P(Mpi, Does) {
  try {
    GetParam().run(*world);
  } catch (const std::exception& e) {
    world->abort(std::string(GetParam().name) + ": " + e.what());  // the others are inside a collective
  }
}

INSTANTIATE_TEST_SUITE_P(All, Mpi, testing::ValuesIn(comm_cases::kCases),
                         [](const auto& p) { return p.param.name; });

/// The same on GPUs, where each rank has one.
class Nccl : public testing::TestWithParam<comm_cases::Case> {};

TEST_P(Nccl, Does) {
  double lacking[] = {kernels::gpu_count() < world->local_size() ? 1.0 : 0.0};
  world->max(lacking);
  if (lacking[0] > 0) GTEST_SKIP() << "needs a GPU for each rank of a host";
  const Device gpu{DeviceKind::cuda, world->local_rank()};
  try {
    comm_cases::OnDevice comm(make_nccl_comm(*world, gpu), gpu);
    GetParam().run(comm);
  } catch (const std::exception& e) {
    world->abort(std::string(GetParam().name) + ": " + e.what());
  }
}

INSTANTIATE_TEST_SUITE_P(All, Nccl, testing::ValuesIn(comm_cases::kCases),
                         [](const auto& p) { return p.param.name; });

TEST(MpiComm, BuffersLargerThanOneMessageAreSplit) {
  const int64_t n = (int64_t{80} << 20) / 4;  // one message holds 64 MiB
  std::vector<int32_t> v(static_cast<size_t>(n));
  const int root = world->size() - 1;
  const auto fill = [&](int sign) {
    for (int64_t i = 0; i < n; ++i)
      v[static_cast<size_t>(i)] = world->rank() == root ? static_cast<int32_t>(i) * sign : -7;
  };
  for (const bool gather : {false, true}) {
    const int sign = gather ? 1 : -1;
    fill(sign);
    const std::vector<Piece> pieces{{root, 0, n}};
    if (gather)
      world->all_gather(comm_cases::tensor_of(v), pieces);
    else
      world->broadcast(comm_cases::tensor_of(v), root);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) wrong += v[static_cast<size_t>(i)] != static_cast<int32_t>(i) * sign;
    EXPECT_EQ(wrong, 0);
  }
}

TEST(MpiComm, ASecondCallOfTheSameSizeAllocatesNothing) {
  std::vector<float> v(100'000);
  std::vector<Piece> pieces;
  for (int r = 0; r < world->size(); ++r) pieces.push_back(even_piece(std::ssize(v), r, world->size()));
  double values[3] = {};
  const auto all = [&] {
    world->all_reduce(comm_cases::tensor_of(v), DType::bf16);
    world->all_reduce(comm_cases::tensor_of(v), DType::f32);
    world->reduce_scatter(comm_cases::tensor_of(v), pieces, DType::f32);
    world->all_gather(comm_cases::tensor_of(v), pieces);
    world->sum(values);
    world->barrier();
  };
  all();
  const int64_t before = allocations();
  for (int i = 0; i < 10; ++i) all();
  EXPECT_EQ(allocations() - before, 0);
}

TEST(MpiComm, SmallCollectivesAreCheap) {
  double values[4] = {};
  using Clock = std::chrono::steady_clock;
  const auto time_us = [&](auto&& call) {
    for (int i = 0; i < 100; ++i) call();
    const auto start = Clock::now();
    for (int i = 0; i < 1000; ++i) call();
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / 1000;
  };
  const double barrier_us = time_us([&] { world->barrier(); }), sum_us = time_us([&] { world->sum(values); });
  if (world->rank() == 0)
    std::printf("  %d ranks: the check of a call takes %.1f us, sum of 4 doubles %.1f us\n", world->size(),
                barrier_us, sum_us);
}

}  // namespace
}  // namespace osprey

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!osprey::launched_by_mpi()) {
    std::fprintf(stderr, "start me with mpirun\n");
    return 2;
  }
  const auto comm = osprey::make_world_comm();
  osprey::world = comm.get();
  if (comm->kind() != "mpi") comm->abort("expected MPI, got " + comm->kind());
  if (comm->rank() != 0) {  // the others speak only when something fails
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    struct Failures : testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& r) override {
        if (r.failed())
          std::fprintf(stderr, "[rank %d] %s:%d: %s\n", osprey::world->rank(),
                       r.file_name() ? r.file_name() : "?", r.line_number(), r.message());
      }
    };
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Failures);
  }
  double failed[] = {RUN_ALL_TESTS() == 0 ? 0.0 : 1.0};
  comm->max(failed);
  return failed[0] > 0 ? 1 : 0;
}
