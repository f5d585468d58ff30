#include "framework/parallel/call_check.h"

#include <atomic>

#include "framework/parallel/thread_comm.h"
#include "tests/framework/parallel/comm_cases.h"

namespace osprey {
namespace {

using comm_cases::error_of;
using comm_cases::expect_words;

Call sum_of(int64_t count) { return {.count = count, .collective = Collective::all_reduce}; }
const Call end{.collective = Collective::finish_before};

void run_sequence(CallCheck& check, std::initializer_list<int64_t> counts) {
  for (const int64_t count : counts) check.next(sum_of(count));
  check.close(end);
}

TEST(CallCheck, KnownSequencesNeedNoMeeting) {
  std::atomic<bool> went_ahead = false;
  run_thread_ranks(2, [&](Communicator& comm) {
    CallCheck check(comm);
    run_sequence(check, {5, 6, 7});
    run_sequence(check, {6});
    if (comm.rank() == 1)
      while (!went_ahead) std::this_thread::yield();
    for (const int64_t count : {5, 6, 7}) check.next(sum_of(count));  // rank 0 would wait for rank 1 for ever
    went_ahead = true;
    EXPECT_TRUE(check.pending());
    check.close(end);
    EXPECT_FALSE(check.pending());
  });
}

TEST(CallCheck, ADifferenceInANewSequenceIsFoundBeforeAnythingIsQueued) {
  run_thread_ranks(3, [](Communicator& comm) {
    CallCheck check(comm);
    run_sequence(check, {5});
    check.next(sum_of(5));
    expect_words(error_of([&] { check.next(sum_of(comm.rank() == 2 ? 8 : 9)); }),
                 {"[all_reduce]", "rank 2 is at {call 3: all_reduce of 8 f32}",
                  "rank 0 is at {call 3: all_reduce of 9"});
    EXPECT_FALSE(check.lost());
    run_sequence(check, {5, 1, 2});
  });
}

TEST(CallCheck, ARankThatEndsEarlyIsToldWhatTheOthersDo) {
  run_thread_ranks(2, [](Communicator& comm) {
    CallCheck check(comm);
    run_sequence(check, {5});
    check.next(sum_of(5));
    expect_words(error_of([&] { comm.rank() == 0 ? check.close(end) : check.next(sum_of(8)); }),
                 {"rank 1 is at {call 3: all_reduce of 8 f32}", "rank 0 is at {call 3: finish_before"});
    EXPECT_FALSE(check.lost());
  });
}

TEST(CallCheck, KnownSequencesMixedUpAreFoundWhenTheyEnd) {
  run_thread_ranks(2, [](Communicator& comm) {
    CallCheck check(comm);
    run_sequence(check, {5, 6});
    run_sequence(check, {5, 8});
    check.next(sum_of(5));
    check.next(sum_of(comm.rank() == 0 ? 6 : 8));
    expect_words(error_of([&] { check.close(end); }),
                 {"rank 1 is at {call 7: all_reduce of 8 f32}", "rank 0 is at {call 7: all_reduce of 6"});
    EXPECT_TRUE(check.lost());
  });
}

TEST(CallCheck, OneRankMeetsNobody) {
  const auto comm = make_self_comm();
  CallCheck check(*comm);
  run_sequence(check, {5});
  EXPECT_FALSE(check.pending());
}

}  // namespace
}  // namespace osprey
