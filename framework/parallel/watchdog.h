#pragma once
// Ends a job whose ranks wait for each other in vain, and says who waits for what.

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "framework/parallel/collective.h"
#include "kernels/device.h"

namespace osprey {

/// Watches the collectives of one communicator from a thread of its own. When the oldest has not ended
/// `timeout_s` after it was queued and the one before it ended, or when the transport reports an error, it
/// writes what this rank waits for, what the others say they wait for, and the state of this host to stderr,
/// stops the transport and aborts the job.
class Watchdog {
 public:
  struct Transport {
    std::function<std::string()> error;  // what went wrong by itself; empty while all is well
    std::function<void()> stop;  // makes what is under way end with an error; may be called at any time
  };
  /// `host` is for this object alone.
  Watchdog(std::shared_ptr<Communicator> host, Device device, double timeout_s, Transport transport);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// For one thread of the rank: a collective begins; it is on `queue` and ends there; it has ended.
  void begin(const Call& call);
  void queued(const Queue& queue);
  void ended();
  /// Errors: throws what ended the job.
  void require_alive() const;
  bool fired() const;

 private:
  struct Entry {
    Call call;
    double since_s = 0;
    std::unique_ptr<kernels::Event> end;  // null until it is queued
  };
  void loop();
  std::string trouble();  // empty while there is none
  void fire(const std::string& what);
  std::string ask_others(const std::string& mine) const;

  std::shared_ptr<Communicator> host_;
  Device device_;
  double timeout_s_;
  Transport transport_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> entries_;
  std::vector<std::unique_ptr<kernels::Event>> spare_;
  std::string fired_;
  bool stop_ = false;
  std::thread thread_;
};

/// "load average 63.2 on 64 CPUs, 1.2 of 503.4 GB of memory available": more than half of all hangs have a
/// cause there.
std::string host_state();

}  // namespace osprey
