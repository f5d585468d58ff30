#include "framework/parallel/communicator.h"

#include <chrono>

#include "framework/parallel/mpi_comm.h"
#include "framework/parallel/thread_comm.h"
#include "tests/framework/parallel/comm_cases.h"

namespace osprey {
namespace {

using comm_cases::error_of;
using comm_cases::expect_words;

/// (case, number of thread ranks, 0 for SelfComm)
class EveryCommunicator : public testing::TestWithParam<std::tuple<comm_cases::Case, int>> {};

TEST_P(EveryCommunicator, Does) {
  const auto [test, ranks] = GetParam();
  if (ranks == 0) {
    test.run(*make_self_comm());
  } else {
    run_thread_ranks(ranks, test.run);
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryCommunicator,
                         testing::Combine(testing::ValuesIn(comm_cases::kCases), testing::Range(0, 5)),
                         [](const auto& p) {
                           const int ranks = std::get<1>(p.param);
                           return std::string(std::get<0>(p.param).name) +
                                  (ranks == 0 ? "Self" : "Threads" + std::to_string(ranks));
                         });

TEST(ThreadComm, ARankThatThrowsEndsTheOthers) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::string> errors(3);
  const auto first = error_of([&] {
    run_thread_ranks(3, [&](Communicator& comm) {
      try {
        if (comm.rank() == 1) fail("test", "rank 1 has had enough");
        comm.barrier();
      } catch (const Error& e) {
        errors[static_cast<size_t>(comm.rank())] = e.what();
        throw;
      }
    });
  });
  EXPECT_EQ(first, "[test] rank 1 has had enough");
  expect_words(errors[0], {"[barrier]", "rank 1 left before call 0"});
  expect_words(errors[2], {"[barrier]", "left before call 0"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(ThreadComm, AbortReachesRanksThatWaitInADuplicate) {
  std::string seen;
  const auto first = error_of([&] {
    run_thread_ranks(2, [&](Communicator& comm) {
      const auto other = comm.duplicate();
      if (comm.rank() == 1) comm.abort("out of luck");
      seen = error_of([&] { other->barrier(); });
      fail("test", "{}", seen);
    });
  });
  expect_words(seen, {"[barrier]", "[rank 1] out of luck"});
}

TEST(WorldComm, IsSelfWithoutALauncher) {
  for (const char* key : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"})
    if (std::getenv(key)) GTEST_SKIP() << "these tests were started by a launcher: " << key << " is set";
  EXPECT_FALSE(launched_by_mpi());
  EXPECT_EQ(make_world_comm()->kind(), "self");
}

TEST(SelfCommDeathTest, AbortNamesTheRankAndFails) {
  EXPECT_EXIT(make_self_comm()->abort("no such file"), testing::ExitedWithCode(1),
              "\\[rank 0\\] no such file");
}

}  // namespace
}  // namespace osprey
