#include "tests/support/executor/executor.h"

#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/core/check.h"
#include "tests/support/executor/crash.h"
#include "tests/support/executor/fiber.h"
#include "tests/support/executor/intrinsics.h"
#include "tests/support/executor/memory.h"
#include "tests/support/executor/sanitizers.h"
#include "tests/support/executor/shared.h"

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim, gridDim;

namespace osprey::executor {

namespace {

constexpr int max_threads = 1024;

/// Thrown in threads that wait when another has failed, so that their stacks unwind.
struct Cancelled {};

/// Draws that are a function of (seed, launch, block) and a counter.
class Draws {
 public:
  void start(uint64_t a, uint64_t b, uint64_t c) { key_ = mix(mix(mix(a) ^ b) ^ c), count_ = 0; }
  /// Uniform in [0, n).
  uint32_t below(uint32_t n) {
    const uint32_t r = static_cast<uint32_t>(mix(key_ + ++count_ * 0x9E3779B97F4A7C15ull) >> 32);
    return static_cast<uint32_t>(static_cast<uint64_t>(r) * n >> 32);
  }

 private:
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }
  uint64_t key_ = 0, count_ = 0;
};

struct Copy {
  void* to;
  const void* from;
  bool valid, closed;
};

struct Thread {
  enum class State : uint8_t { fresh, ready, at_barrier, at_exchange, finished };
  State state = State::fresh;
  Fiber* fiber = nullptr;  // of a thread that has begun
  const char* what = "";   // it waits for
  std::source_location at;
  unsigned mask = 0;
  int copy_groups = 0;
  std::vector<Copy> copies;
};

/// Lanes of one warp that wait for each other.
struct Group {
  unsigned mask, here;
  Exchange exchange;
  std::array<void*, 32> operands;
};

std::string place(std::source_location at) {
  const std::string file = at.file_name();
  for (const char* root : {"/kernels/", "/tests/", "/framework/"})
    if (const size_t p = file.rfind(root); p != std::string::npos)
      return fmt::format("{}:{}", file.substr(p + 1), at.line());
  return fmt::format("{}:{}", file, at.line());
}

/// Runs blocks; each host thread has its own.
class Runner {
 public:
  void run(const Launch& launch, uint64_t seed, uint64_t number);
  bool running() const { return launch_ != nullptr && current_ >= 0; }
  std::string who(int thread) const;
  int current() const { return current_; }
  const Launch& launch() const { return *launch_; }
  Fiber& running_fiber() { return *running_fiber_; }
  SharedMemory& shared() { return shared_; }
  Thread& thread() { return threads_[static_cast<size_t>(current_)]; }

  void wait_for_block(std::source_location at);
  void wait_for_lanes(unsigned mask, const char* what, std::source_location at, void* operand,
                      Exchange exchange);

 private:
  void run_block(dim3 block);
  void start_block();
  int pick();
  void become(int thread);
  void leave_for(int thread, Fiber& self);
  void wait();
  void make_ready(int thread);
  void line_up();
  void run_threads();
  static void fiber_main(void* runner) { static_cast<Runner*>(runner)->run_threads(); }
  void unwind();
  void stop(std::exception_ptr error);
  std::string deadlock() const;
  std::string doing(int thread) const;

  const Launch* launch_ = nullptr;
  int count_ = 0;  // of threads in a block
  std::array<Thread, max_threads> threads_;
  std::array<uint3, max_threads> index_;
  std::array<std::vector<Group>, max_threads / 32> groups_;
  std::vector<int> ready_;
  int at_barrier_ = 0, first_at_barrier_ = 0;
  bool eager_ = false;  // one warp after the other runs as far as it can
  Draws draws_;
  SharedMemory shared_;

  Fiber host_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  Fiber* running_fiber_ = nullptr;
  int current_ = -1;
  bool cancelled_ = false;
  std::exception_ptr error_;
};

std::string Runner::who(int thread) const {
  const uint3 t = index_[static_cast<size_t>(thread)], b = blockIdx;
  return fmt::format("block ({}, {}, {}), thread ({}, {}, {})", b.x, b.y, b.z, t.x, t.y, t.z);
}

/// A thread that is allowed to go on, or -1.
int Runner::pick() {
  if (ready_.empty()) return -1;
  const size_t i = eager_ ? ready_.size() - 1 : draws_.below(static_cast<uint32_t>(ready_.size()));
  const int thread = ready_[i];
  ready_[i] = ready_.back();
  ready_.pop_back();
  return thread;
}

void Runner::become(int thread) {
  current_ = thread;
  threadIdx = index_[static_cast<size_t>(thread)];
}

/// Lets another thread run, or the host when `thread` is -1. Returns when `self` is switched to again.
void Runner::leave_for(int thread, Fiber& self) {
  Fiber* to = &host_;
  if (thread >= 0) {
    become(thread);
    to = threads_[static_cast<size_t>(thread)].fiber;
    if (!to) {
      if (idle_.empty()) {
        fibers_.push_back(std::make_unique<Fiber>(fiber_main, this));
        idle_.push_back(fibers_.back().get());
      }
      to = idle_.back();
      idle_.pop_back();
    }
  }
  running_fiber_ = to;
  self.switch_to(*to);
}

/// The running thread has said what it waits for; returns when it has been made ready and was picked.
void Runner::wait() {
  const int self = current_;
  const int next = pick();
  if (next != self) {
    Fiber& fiber = *running_fiber_;
    threads_[static_cast<size_t>(self)].fiber = &fiber;
    leave_for(next, fiber);
  }
  if (cancelled_) throw Cancelled{};
}

void Runner::make_ready(int thread) {
  threads_[static_cast<size_t>(thread)].state = Thread::State::ready;
  ready_.push_back(thread);
}

/// What every fiber does: thread after thread, as long as they do not wait. Never returns.
void Runner::run_threads() {
  for (;;) {
    try {
      launch_->thread();
    } catch (const Cancelled&) {
    } catch (...) {
      stop(std::current_exception());
    }
    threads_[static_cast<size_t>(current_)].state = Thread::State::finished;
    const int next = pick();
    if (next >= 0 && !threads_[static_cast<size_t>(next)].fiber) {
      become(next);
      continue;
    }
    Fiber& self = *running_fiber_;
    idle_.push_back(&self);
    leave_for(next, self);
  }
}

void Runner::stop(std::exception_ptr error) {
  if (!error_) error_ = std::move(error);
  ready_.clear();
}

/// Ends the threads that still wait.
void Runner::unwind() {
  cancelled_ = true;
  for (int t = 0; t < count_; ++t) {
    const Thread& thread = threads_[static_cast<size_t>(t)];
    if (thread.fiber && thread.state != Thread::State::finished) leave_for(t, host_);
  }
  cancelled_ = false;
}

/// All threads may go on: in any order where each turn is drawn; else warp by warp.
void Runner::line_up() {
  ready_.resize(static_cast<size_t>(count_));
  std::iota(ready_.begin(), ready_.end(), 0);
  if (!eager_) return;
  const auto shuffle = [&](size_t begin, size_t end) {
    for (size_t n = end - begin; n > 1; --n)
      std::swap(ready_[begin + n - 1], ready_[begin + draws_.below(static_cast<uint32_t>(n))]);
  };
  std::array<int, max_threads / 32> warps;
  const auto warp_count = (static_cast<size_t>(count_) + 31) / 32;
  std::iota(warps.begin(), warps.end(), 0);
  for (size_t n = warp_count; n > 1; --n)
    std::swap(warps[n - 1], warps[draws_.below(static_cast<uint32_t>(n))]);
  for (size_t w = 0, at = 0; w < warp_count; ++w) {
    const size_t begin = at;
    for (int t = 32 * warps[w]; t < std::min(count_, 32 * (warps[w] + 1)); ++t) ready_[at++] = t;
    shuffle(begin, at);
  }
}

void Runner::start_block() {
  for (int t = 0; t < count_; ++t) {
    Thread& thread = threads_[static_cast<size_t>(t)];
    thread.state = Thread::State::fresh;
    thread.fiber = nullptr;
    thread.copies.clear();
    thread.copy_groups = 0;
  }
  for (auto& groups : groups_) groups.clear();
  at_barrier_ = 0;
  eager_ = draws_.below(2) == 1;
  line_up();
  shared_.start(launch_->shared_bytes);
}

void Runner::run_block(dim3 block) {
  blockIdx = {block.x, block.y, block.z};
  start_block();
  leave_for(pick(), host_);
  if (!error_) {
    for (int t = 0; t < count_; ++t)
      if (threads_[static_cast<size_t>(t)].state != Thread::State::finished) {
        error_ = std::make_exception_ptr(Error(deadlock()));
        break;
      }
  }
  if (error_) unwind();
  current_ = -1;
  if (!error_)
    if (const std::string broken = shared_.broken(); !broken.empty())
      fail(launch_->op, "block ({}, {}, {}): {}", block.x, block.y, block.z, broken);
}

void Runner::run(const Launch& launch, uint64_t seed, uint64_t number) {
  require(!launch_, launch.op, "launched by a kernel");
  prepare_thread_for_crashes();
  struct Clear {
    Runner& runner;
    ~Clear() { runner.launch_ = nullptr, runner.error_ = nullptr; }
  } clear{*this};
  launch_ = &launch;
  blockDim = launch.threads;
  gridDim = launch.blocks;
  count_ = static_cast<int>(launch.threads.x * launch.threads.y * launch.threads.z);
  for (unsigned t = 0; t < static_cast<unsigned>(count_); ++t)
    index_[t] = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
  const uint64_t x = launch.blocks.x, y = launch.blocks.y, total = x * y * launch.blocks.z;
  draws_.start(seed, number, total);
  // Blocks in the order (first + i * step) % total, where step has no divisor in common with total.
  const uint64_t first = draws_.below(static_cast<uint32_t>(total));
  uint64_t step = 1 + draws_.below(static_cast<uint32_t>(total));
  while (std::gcd(step, total) != 1) ++step;
  for (uint64_t i = 0; i < total; ++i) {
    const uint64_t b = (first + i * step) % total;
    draws_.start(seed, number, b);
    run_block(
        {static_cast<unsigned>(b % x), static_cast<unsigned>(b / x % y), static_cast<unsigned>(b / x / y)});
    if (!error_) continue;
    try {
      std::rethrow_exception(error_);
    } catch (const Error& e) {
      fail(launch.op, "{} (executor seed {})", e.what(), seed);
    }
  }
}

std::string Runner::doing(int thread) const {
  const Thread& t = threads_[static_cast<size_t>(thread)];
  if (t.state == Thread::State::finished) return "has finished";
  if (t.state == Thread::State::at_barrier) return fmt::format("waits at {} ({})", t.what, place(t.at));
  return fmt::format("waits at {} of lanes {:#x} ({})", t.what, t.mask, place(t.at));
}

/// Why nobody can go on.
std::string Runner::deadlock() const {
  for (size_t w = 0; w < groups_.size(); ++w)
    for (const Group& g : groups_[w]) {
      const int base = static_cast<int>(w) * 32;
      const int here = base + __builtin_ctz(g.here), missing = base + __builtin_ctz(g.mask & ~g.here);
      return fmt::format("{} {}, but {}", who(here), doing(here),
                         missing < count_ ? fmt::format("thread {} {}", missing, doing(missing))
                                          : fmt::format("there is no thread {}", missing));
    }
  int here = 0, missing = 0;
  while (threads_[static_cast<size_t>(here)].state != Thread::State::at_barrier) ++here;
  while (threads_[static_cast<size_t>(missing)].state == Thread::State::at_barrier) ++missing;
  return fmt::format("{} {} with {} others, but thread {} {}", who(here), doing(here), at_barrier_ - 1,
                     missing, doing(missing));
}

bool same_place(std::source_location a, std::source_location b) {
  return a.line() == b.line() && a.column() == b.column();
}

void Runner::wait_for_block(std::source_location at) {
  Thread& self = thread();
  self.what = "__syncthreads()";
  self.at = at;
  if (at_barrier_ == 0) first_at_barrier_ = current_;
  if (!same_place(threads_[static_cast<size_t>(first_at_barrier_)].at, at))
    fail_thread(fmt::format("waits at __syncthreads() ({}), but thread {} {}", place(at), first_at_barrier_,
                            doing(first_at_barrier_)));
  self.state = Thread::State::at_barrier;
  if (++at_barrier_ == count_) {
    at_barrier_ = 0;
    for (int t = 0; t < count_; ++t) threads_[static_cast<size_t>(t)].state = Thread::State::ready;
    line_up();
  }
  wait();
}

void Runner::wait_for_lanes(unsigned mask, const char* what, std::source_location at, void* operand,
                            Exchange exchange) {
  const int warp = current_ / 32;
  const auto lane = static_cast<size_t>(current_ % 32);
  if (!(mask >> lane & 1))
    fail_thread(fmt::format("{} ({}): lane {} is not in {:#x}", what, place(at), lane, mask));
  Thread& self = thread();
  self.what = what;
  self.at = at;
  self.mask = mask;
  auto& groups = groups_[static_cast<size_t>(warp)];
  size_t g = 0;
  while (g < groups.size() && groups[g].mask != mask) ++g;
  if (g == groups.size()) groups.push_back({mask, 0, exchange, {}});
  Group& group = groups[g];
  if (group.here != 0) {
    const int other = warp * 32 + __builtin_ctz(group.here);
    if (group.exchange != exchange || !same_place(threads_[static_cast<size_t>(other)].at, at))
      fail_thread(fmt::format("waits at {} of lanes {:#x} ({}), but thread {} {}", what, mask, place(at),
                              other, doing(other)));
  }
  group.here |= 1u << lane;
  group.operands[lane] = operand;
  self.state = Thread::State::at_exchange;
  if (group.here == mask) {
    const Group complete = group;
    groups[g] = groups.back();
    groups.pop_back();
    void* operands[32];
    std::copy(complete.operands.begin(), complete.operands.end(), operands);
    exchange(operands, mask);
    for (unsigned left = mask; left != 0; left &= left - 1) make_ready(warp * 32 + __builtin_ctz(left));
  }
  wait();
}

Runner& runner() {
  thread_local Runner mine;
  return mine;
}
constinit thread_local Runner* active = nullptr;  // where this host thread runs a kernel

uint64_t seed_of_environment() {
  const char* text = std::getenv("OSPREY_EXECUTOR_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}
constinit thread_local uint64_t launches = 0;

uint64_t& current_seed() {
  thread_local uint64_t mine = seed_of_environment();
  return mine;
}

Runner& active_runner() {
  require(active && active->running(), "executor", "device code was called outside a kernel");
  return *active;
}

}  // namespace

void set_seed(uint64_t seed) {
  current_seed() = seed;
  launches = 0;
}
uint64_t seed() { return current_seed(); }

void run_blocks(const Launch& launch) {
  struct Active {
    ~Active() { active = nullptr; }
  } clear;
  Runner& mine = runner();
  require(!active, launch.op, "launched by a kernel");
  active = &mine;
  mine.run(launch, current_seed(), launches++);
}

void fail_thread(const std::string& what) {
  const Runner& r = active_runner();
  throw Error(fmt::format("{} {}", r.who(r.current()), what));
}

void* shared_memory(size_t bytes) {
  Runner& r = active_runner();
  if (bytes > r.launch().shared_bytes)
    fail_thread(
        fmt::format("takes {} bytes of shared memory, launched with {}", bytes, r.launch().shared_bytes));
  return r.shared().data();
}

void require_shared(const void* p, size_t bytes, size_t alignment, const char* what) {
  Runner& r = active_runner();
  if (!r.shared().holds(p, bytes))
    fail_thread(fmt::format("{}: {} bytes are not all in shared memory", what, bytes));
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    fail_thread(fmt::format("{}: an address in shared memory is no multiple of {}", what, alignment));
}

void wait_for_block(std::source_location at) { active_runner().wait_for_block(at); }

void wait_for_lanes(unsigned mask, const char* what, std::source_location at, void* operand,
                    Exchange exchange) {
  active_runner().wait_for_lanes(mask, what, at, operand, exchange);
}

int lane() { return active_runner().current() % 32; }

void copy_later(void* shared, const void* global, bool valid) {
  require_shared(shared, 16, 16, "copy_async_16");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail_thread("copy_async_16: a global address is no multiple of 16");
  memset(shared, poison_byte, 16);
  active_runner().thread().copies.push_back({shared, global, valid, false});
}

void close_copies() {
  Thread& t = active_runner().thread();
  ++t.copy_groups;
  t.copies.push_back({nullptr, nullptr, false, true});
}

void wait_for_copies(int pending) {
  Thread& t = active_runner().thread();
  size_t done = 0;
  for (; t.copy_groups > pending; ++done) {
    const Copy& c = t.copies[done];
    if (c.closed)
      --t.copy_groups;
    else if (c.valid)
      memcpy(c.to, c.from, 16);
    else
      memset(c.to, 0, 16);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

std::string running_thread() {
  if (!active || !active->running()) return "";
  return fmt::format("[{}] {}", active->launch().op, active->who(active->current()));
}

bool stack_overflowed_at(const void* address) {
  return active && active->running() && active->running_fiber().overflowed_at(address);
}

}  // namespace osprey::executor
