#pragma once
// Gradient reduction that runs beside the backward pass, and the gathering of updated values.

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "framework/parallel/sharding.h"
#include "framework/tape/hooks.h"
#include "kernels/core/queue.h"

namespace osprey {

/// The flat buffers of one bucket.
struct ReduceBucket {
  int layer = -1;
  Tensor grads;                    // f32
  Tensor values;                   // f32 or bf16
  std::vector<Parameter*> params;  // trainable ones whose gradients nobody wrote are zeroed before reduction
};
std::vector<ReduceBucket> reduce_buckets(ParamStore& store);

/// Sums each bucket's gradients over ranks beside the work on `queue`, in the order of the calls, which
/// must be the same on all ranks: queued on the device by an asynchronous communicator, else on a thread of
/// its own with its own communicator. With one rank it moves nothing.
/// Async: reduce() and gather() return at once, and begin after what the queue holds then. Until wait_all()
/// the bucket belongs to the reducer: its gradients (reduce) or values (gather) may not be touched. What is
/// put on the queue after wait_all() sees the results; with a thread, so does the host. Both may be called
/// by one thread only.
/// Errors: what fails on the thread is thrown by wait_all(); nothing more is moved after it.
class Reducer final : public LayerHook {
 public:
  Reducer(Communicator& world, const Queue& queue, const ShardPlan& plan, const ParallelSpec& spec,
          std::vector<ReduceBucket> buckets);
  ~Reducer() override;
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  /// Buckets have other memory or other trainable parameters now; between steps only.
  void rebind(std::vector<ReduceBucket> buckets) { buckets_ = std::move(buckets); }
  /// Call before the backward pass of the last micro step: after_backward(layer) then reduces that layer. It
  /// ends with wait_all().
  void arm();
  void after_backward(int layer) override;

  /// After wait_all(), this rank's pieces of the bucket hold summed gradients, and the `gather_grads` ones on
  /// all ranks.
  void reduce(size_t bucket);
  /// After wait_all(), all ranks hold the values that their owners updated. Counts up Parameter::version.
  void gather(size_t bucket);
  void gather_all();
  void wait_all();

  /// Time the thread spent moving data, and time wait_all() waited for it: what is not hidden behind
  /// backward. Zero without a thread: a host that does not wait for the device cannot know.
  struct Times {
    double busy_ms = 0;
    double exposed_ms = 0;
  };
  Times times() const;

 private:
  enum class Kind { reduce, gather };
  struct Job {
    Kind kind;
    size_t bucket;
  };
  void submit(const Job& job);
  void loop();
  void run(const Job& job);

  Queue queue_;
  const ShardPlan& plan_;
  DType wire_;
  std::vector<ReduceBucket> buckets_;
  std::unique_ptr<Communicator> own_;  // for the thread
  Communicator* comm_ = nullptr;       // null with one rank
  bool armed_ = false;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Job> jobs_;  // cleared by wait_all(), so it stops growing after the first step
  size_t done_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
  Times times_;
  std::thread thread_;
};

}  // namespace osprey
