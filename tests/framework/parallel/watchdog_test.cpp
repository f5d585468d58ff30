#include "framework/parallel/watchdog.h"

#include <atomic>

#include "framework/clock.h"
#include "framework/parallel/thread_comm.h"
#include "tests/framework/parallel/comm_cases.h"

namespace osprey {
namespace {

using comm_cases::error_of;
using comm_cases::expect_words;

const Call call{.number = 57,
                .count = 1234,
                .collective = Collective::all_gather,
                .dtype = DType::bf16,
                .wire = DType::bf16};

/// Stands for a transport in which a rank is stuck until it is stopped.
struct Stuck {
  std::atomic<bool> stopped = false;
  std::string error;
  Watchdog::Transport transport() {
    return {[this] { return error; }, [this] { stopped = true; }};
  }
  void wait() const {
    const double start = now_s();
    while (!stopped && now_s() - start < 20) std::this_thread::yield();
  }
};

TEST(Watchdog, SaysWhoWaitsForWhatWhenAllWait) {
  run_thread_ranks(2, [](Communicator& comm) {
    Stuck stuck;
    Watchdog dog(comm.duplicate(), {}, 0.3, stuck.transport());
    dog.begin(call);
    stuck.wait();
    const std::string other = fmt::format("rank {}: [nccl] call 57", 1 - comm.rank());
    expect_words(error_of([&] { dog.require_alive(); }),
                 {"[nccl] call 57: all_gather of 1234 bf16 (2468 bytes) has not ended for", "load average",
                  "GB of memory", other.c_str()});
    EXPECT_TRUE(dog.fired());
  });
}

TEST(Watchdog, NamesARankThatIsGoneAndEndsTheJob) {
  std::string seen;
  const auto first = error_of([&] {
    run_thread_ranks(2, [&](Communicator& comm) {
      Stuck stuck;
      std::shared_ptr<Communicator> host = comm.duplicate();
      if (comm.rank() == 1) return;
      Watchdog dog(std::move(host), {}, 0.3, stuck.transport());
      dog.begin(call);
      stuck.wait();
      seen = error_of([&] { dog.require_alive(); });
      dog.require_alive();
    });
  });
  expect_words(seen, {"all_gather of 1234 bf16", "rank 1 left"});
  EXPECT_FALSE(first.empty());
}

TEST(Watchdog, TellsWhatTheTransportReports) {
  run_thread_ranks(1, [](Communicator& comm) {
    Stuck stuck;
    stuck.error = "the cable is out";
    Watchdog dog(comm.duplicate(), {}, 100, stuck.transport());
    stuck.wait();
    expect_words(error_of([&] { dog.require_alive(); }), {"[nccl] the cable is out; nothing was under way"});
  });
}

TEST(Watchdog, LetsPassWhatEndsInTime) {
  run_thread_ranks(1, [](Communicator& comm) {
    Stuck stuck;
    Watchdog dog(comm.duplicate(), {}, 0.4, stuck.transport());
    const double start = now_s();
    while (now_s() - start < 0.8) {
      dog.begin(call);
      dog.queued(Queue{});
      dog.begin(call);
      dog.ended();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_FALSE(dog.fired());
    EXPECT_FALSE(stuck.stopped);
  });
}

}  // namespace
}  // namespace osprey
