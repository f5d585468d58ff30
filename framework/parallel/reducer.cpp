#include "framework/parallel/reducer.h"

#include "framework/clock.h"
#include "kernels/device.h"

namespace osprey {

std::vector<ReduceBucket> reduce_buckets(ParamStore& store) {
  std::vector<ReduceBucket> all;
  for (const Bucket& b : store.buckets()) all.push_back({b.layer, b.grads, b.values, b.params});
  return all;
}

Reducer::Reducer(Communicator& world, const Queue& queue, const ShardPlan& plan, const ParallelSpec& spec,
                 std::vector<ReduceBucket> buckets)
    : queue_(queue), plan_(plan), wire_(spec.reduce_dtype), buckets_(std::move(buckets)) {
  require(plan.ranks == world.size(), "reducer", "the plan is for {} ranks, there are {}", plan.ranks,
          world.size());
  require(plan.buckets.size() == buckets_.size(), "reducer", "the plan has {} buckets, got {}",
          plan.buckets.size(), buckets_.size());
  if (world.size() == 1) return;
  if (world.asynchronous()) {
    comm_ = &world;
    return;
  }
  own_ = world.duplicate();
  comm_ = own_.get();
  jobs_.reserve(4 * buckets_.size());
  thread_ = std::thread([this] { loop(); });
}

Reducer::~Reducer() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Reducer::arm() { armed_ = true; }

void Reducer::after_backward(int layer) {
  if (!armed_) return;
  for (size_t b = 0; b < buckets_.size(); ++b)
    if (buckets_[b].layer == layer) reduce(b);
}

void Reducer::reduce(size_t bucket) {
  for (Parameter* p : buckets_.at(bucket).params) {
    if (!p->trainable || p->grad_written) continue;
    kernels::fill_bytes(queue_, p->grad, 0);
    p->grad_written = true;
  }
  submit({Kind::reduce, bucket});
}

void Reducer::gather(size_t bucket) {
  for (Parameter* p : buckets_.at(bucket).params)
    if (p->trainable) ++p->version;  // whoever reads the value does so after wait_all()
  submit({Kind::gather, bucket});
}

void Reducer::gather_all() {
  for (size_t b = 0; b < buckets_.size(); ++b) gather(b);
}

void Reducer::submit(const Job& job) {
  if (!comm_) return;
  if (comm_->asynchronous()) {
    comm_->start_after(queue_);
    run(job);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(job);
  }
  changed_.notify_all();
}

void Reducer::wait_all() {
  armed_ = false;
  if (!comm_) return;
  if (comm_->asynchronous()) return comm_->finish_before(queue_);
  const double start = now_s();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ == jobs_.size() || error_; });
  times_.exposed_ms += (now_s() - start) * 1e3;
  if (error_) std::rethrow_exception(error_);
  jobs_.clear();
  done_ = 0;
}

Reducer::Times Reducer::times() const {
  const std::lock_guard lock(mutex_);
  return times_;
}

void Reducer::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || done_ < jobs_.size(); });
    if (stop_) return;
    const Job job = jobs_[done_];
    lock.unlock();
    const double start = now_s();
    std::exception_ptr error;
    try {
      run(job);
    } catch (...) {
      error = std::current_exception();
    }
    const double ms = (now_s() - start) * 1e3;
    lock.lock();
    times_.busy_ms += ms;
    ++done_;
    error_ = error;
    changed_.notify_all();
    if (error_) return;
  }
}

void Reducer::run(const Job& job) {
  const ReduceBucket& bucket = buckets_[job.bucket];
  const BucketPlan& plan = plan_.buckets[job.bucket];
  if (job.kind == Kind::gather) {
    if (!plan.gather_values.empty()) comm_->all_gather(bucket.values, plan.gather_values);
    return;
  }
  if (!plan.reduce.empty()) comm_->reduce_scatter(bucket.grads, plan.reduce, wire_);
  if (!plan.gather_grads.empty()) comm_->all_gather(bucket.grads, plan.gather_grads);
}

}  // namespace osprey
