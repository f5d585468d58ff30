#include "framework/parallel/watchdog.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <future>
#include <optional>

#include "framework/clock.h"

namespace osprey {

namespace {

constexpr double poll_s = 0.25;
constexpr double answer_s = 65;  // MpiComm names the ranks that have not come after 60 s
constexpr double stop_s = 10;

std::chrono::duration<double> seconds(double s) { return std::chrono::duration<double>(s); }

/// Runs `work` on a thread that is left behind if it takes longer than `limit_s`: what is asked here may
/// hang.
template <class Work>
std::optional<std::string> within(double limit_s, Work work) {
  std::packaged_task<std::string()> task([work = std::move(work)]() -> std::string {
    try {
      return work();
    } catch (const std::exception& e) {
      return e.what();
    }
  });
  std::future<std::string> answer = task.get_future();
  std::thread(std::move(task)).detach();
  if (answer.wait_for(seconds(limit_s)) != std::future_status::ready) return std::nullopt;
  return answer.get();
}

}  // namespace

std::string host_state() {
  double load[1] = {};
  const bool known = getloadavg(load, 1) == 1;
  double total_kb = 0, available_kb = 0, kb = 0;
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  while (file >> key >> kb && std::getline(file, unit)) {
    if (key == "MemTotal:") total_kb = kb;
    if (key == "MemAvailable:") available_kb = kb;
  }
  return fmt::format("load average {} on {} CPUs, {:.1f} of {:.1f} GB of memory available",
                     known ? fmt::format("{:.1f}", load[0]) : "unknown", sysconf(_SC_NPROCESSORS_ONLN),
                     available_kb / 1e6, total_kb / 1e6);
}

Watchdog::Watchdog(std::shared_ptr<Communicator> host, Device device, double timeout_s, Transport transport)
    : host_(std::move(host)), device_(device), timeout_s_(timeout_s), transport_(std::move(transport)) {
  thread_ = std::thread([this] { loop(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::begin(const Call& call) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({call, now_s(), nullptr});
}

void Watchdog::queued(const Queue& queue) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<kernels::Event> end;
  if (spare_.empty()) {
    end = std::make_unique<kernels::Event>(device_);
  } else {
    end = std::move(spare_.back());
    spare_.pop_back();
  }
  end->record(queue);
  entries_.back().end = std::move(end);
}

void Watchdog::ended() {
  const std::lock_guard lock(mutex_);
  entries_.pop_back();
}

void Watchdog::require_alive() const {
  const std::lock_guard lock(mutex_);
  if (!fired_.empty()) throw Error(fired_);
}

bool Watchdog::fired() const {
  const std::lock_guard lock(mutex_);
  return !fired_.empty();
}

void Watchdog::loop() {
  const kernels::Event here(
      device_);  // a new thread would look at its events from GPU 0, and take memory there
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, seconds(std::min(poll_s, timeout_s_ / 8)), [&] { return stop_; })) {
    const std::string what = trouble();
    if (what.empty()) continue;
    fired_ = what;  // whoever gets an error from the transport now finds its reason here
    lock.unlock();
    fire(what);
    return;
  }
}

std::string Watchdog::trouble() {
  if (std::string error = transport_.error(); !error.empty())
    return fmt::format("[nccl] {}; {}", error,
                       entries_.empty() ? "nothing was under way" : "in " + describe(entries_.front().call));
  try {
    while (!entries_.empty() && entries_.front().end && entries_.front().end->passed()) {
      spare_.push_back(std::move(entries_.front().end));
      entries_.pop_front();
      if (!entries_.empty()) entries_.front().since_s = std::max(entries_.front().since_s, now_s());
    }
  } catch (const std::exception& e) {
    return fmt::format("[nccl] {} {}", describe(entries_.front().call), e.what());
  }
  if (entries_.empty() || now_s() - entries_.front().since_s < timeout_s_) return "";
  const Call& call = entries_.front().call;
  return fmt::format("[nccl] {} ({} bytes) has not ended for {:.0f} s", describe(call),
                     call.count * size_bytes(call.dtype), now_s() - entries_.front().since_s);
}

void Watchdog::fire(const std::string& what) {
  const std::string why =
      fmt::format("{}; this host: {}; the other ranks: {}", what, host_state(), ask_others(what));
  {
    const std::lock_guard lock(mutex_);
    fired_ = why;
  }
  within(stop_s, [stop = transport_.stop] { return stop(), std::string(); });
  try {
    host_->abort(why);
  } catch (const std::exception&) {  // ThreadComm: the others have been told
  }
}

/// All ranks that wait come here at about the same time; who does not come is whom they wait for.
std::string Watchdog::ask_others(const std::string& mine) const {
  const auto answer = within(std::min(answer_s, timeout_s_), [host = host_, mine] {
    std::string text;
    const auto all = host->gather_strings(mine);
    for (size_t r = 0; r < all.size(); ++r)
      if (static_cast<int>(r) != host->rank())
        text += fmt::format("{}rank {}: {}", text.empty() ? "" : "; ", r, all[r]);
    return text;
  });
  return answer.value_or("not all of them wait too; the one that does not is the one to look at");
}

}  // namespace osprey
