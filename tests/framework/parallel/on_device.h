#pragma once
// A communicator for device memory seen as one for host memory, so that the cases of comm_cases.h can drive
// it.

#include <memory>

#include "framework/parallel/communicator.h"
#include "kernels/device.h"

namespace osprey::comm_cases {

/// Copies each host tensor to the device, lets `inner` work on the copy, and copies it back.
class OnDevice final : public Communicator {
 public:
  OnDevice(std::unique_ptr<Communicator> inner, Device device)
      : inner_(std::move(inner)), stream_(kernels::open_stream(device, kernels::StreamUse::transfer)) {
    queue_ = {.device = device, .stream = stream_.get()};
  }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string kind() const override { return inner_->kind(); }
  int local_rank() const override { return inner_->local_rank(); }
  int local_size() const override { return inner_->local_size(); }

  void all_reduce(Tensor data, DType wire) override {
    on_copy(data, [&](const Tensor& t) { inner_->all_reduce(t, wire); });
  }
  void reduce_scatter(Tensor flat, std::span<const Piece> pieces, DType wire) override {
    on_copy(flat, [&](const Tensor& t) { inner_->reduce_scatter(t, pieces, wire); });
  }
  void all_gather(Tensor flat, std::span<const Piece> pieces) override {
    on_copy(flat, [&](const Tensor& t) { inner_->all_gather(t, pieces); });
  }
  void broadcast(Tensor data, int root) override {
    on_copy(data, [&](const Tensor& t) { inner_->broadcast(t, root); });
  }
  void barrier() override { inner_->barrier(); }
  void max(std::span<double> values) override { inner_->max(values); }
  void sum(std::span<double> values) override { inner_->sum(values); }
  std::vector<std::string> gather_strings(const std::string& mine) override {
    return inner_->gather_strings(mine);
  }
  std::unique_ptr<Communicator> duplicate() override {
    return std::make_unique<OnDevice>(inner_->duplicate(), queue_.device);
  }
  void abort(const std::string& why) override { inner_->abort(why); }

 private:
  template <class Body>
  void on_copy(const Tensor& host, const Body& body) {
    Tensor copy = host;
    copy.device = queue_.device;
    if (!host.contiguous() || !host.data) return body(copy);  // refused, or empty
    const auto free = [&](void* p) { kernels::release(queue_.device, p, host.bytes()); };
    const std::unique_ptr<void, decltype(free)> memory(
        kernels::allocate(queue_.device, host.bytes(), "a test"), free);
    copy.data = memory.get();
    kernels::upload(queue_, copy, host.data);
    inner_->start_after(queue_);
    body(copy);
    inner_->finish_before(queue_);
    kernels::download(queue_, host.data, copy);
  }

  std::unique_ptr<Communicator> inner_;
  kernels::StreamHandle stream_;
  Queue queue_;
};

}  // namespace osprey::comm_cases
