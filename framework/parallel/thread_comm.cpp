#include "framework/parallel/thread_comm.h"

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "framework/parallel/collective.h"

namespace osprey {
namespace {

/// Shared by a communicator and all its duplicates, so that an abort reaches every thread of every rank.
struct Family {
  std::mutex mutex;
  std::condition_variable changed;
  std::string aborted;  // why, once a rank gave up
};

/// What the ranks of one communicator see of each other. Slot r is written by rank r before a meeting and
/// read by the others after it.
struct World {
  World(int n, std::shared_ptr<Family> f)
      : family(std::move(f)), calls(n), buffers(n), bytes(n), gone(n, 0) {}

  std::shared_ptr<Family> family;
  std::vector<Call> calls;
  std::vector<const void*> buffers;
  std::vector<int64_t> bytes;
  std::shared_ptr<World> child;  // of duplicate(), placed by rank 0
  std::vector<char> gone;
  int arrived = 0;
  int64_t meetings = 0;

  int size() const { return static_cast<int>(calls.size()); }

  /// Returns when all ranks are here. Errors: throws when one is gone or gave up.
  void meet(const Call& call) {
    std::unique_lock lock(family->mutex);
    require_alive(call);
    const int64_t meeting = meetings;
    if (++arrived == size()) {
      arrived = 0;
      ++meetings;
      family->changed.notify_all();
      return;
    }
    while (meetings == meeting) {
      require_alive(call);
      family->changed.wait(lock);
    }
  }

  void leave(int rank) {
    const std::lock_guard lock(family->mutex);
    gone[static_cast<size_t>(rank)] = 1;
    family->changed.notify_all();
  }

 private:
  void require_alive(const Call& call) const {
    require(family->aborted.empty(), name(call.collective), "a rank gave up: {}", family->aborted);
    for (size_t r = 0; r < gone.size(); ++r)
      require(!gone[r], name(call.collective), "rank {} left before call {} (of {} values)", r, call.number,
              call.count);
  }
};

class ThreadComm final : public Communicator {
 public:
  ThreadComm(int rank, std::shared_ptr<World> world) : rank_(rank), world_(std::move(world)) {}
  ~ThreadComm() override { world_->leave(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return world_->size(); }
  std::string kind() const override { return "thread"; }

  void all_reduce(Tensor data, DType wire) override {
    enter(reduce_call(Collective::all_reduce, data, wire), data.data);
    if (size() > 1) {
      sum_range(data, even_piece(data.numel(), rank_, size()), wire);
      meet();
      for (int r = 0; r < size(); ++r) copy_from_owner(data, even_piece(data.numel(), r, size()));
    }
    meet();
  }

  void reduce_scatter(Tensor flat, std::span<const Piece> pieces, DType wire) override {
    enter(pieces_call(Collective::reduce_scatter, flat, pieces, wire, size()), flat.data);
    if (size() > 1)
      for (const Piece& p : pieces)
        if (p.owner == rank_) sum_range(flat, p, wire);
    meet();
  }

  void all_gather(Tensor flat, std::span<const Piece> pieces) override {
    enter(pieces_call(Collective::all_gather, flat, pieces, flat.dtype, size()), flat.data);
    for (const Piece& p : pieces) copy_from_owner(flat, p);
    meet();
  }

  void broadcast(Tensor data, int root) override {
    enter(broadcast_call(data, root, size()), data.data);
    copy_from_owner(data, {root, 0, data.numel()});
    meet();
  }

  void barrier() override { enter({.collective = Collective::barrier}, nullptr); }

  void max(std::span<double> values) override {
    combine(Collective::max, values, [](double a, double b) { return max_or_nan(a, b); });
  }
  void sum(std::span<double> values) override {
    combine(Collective::sum, values, [](double a, double b) { return a + b; });
  }

  std::vector<std::string> gather_strings(const std::string& mine) override {
    world_->bytes[static_cast<size_t>(rank_)] = static_cast<int64_t>(mine.size());
    enter({.collective = Collective::gather_strings}, mine.data());
    std::vector<std::string> all;
    for (size_t r = 0; r < world_->buffers.size(); ++r)
      all.emplace_back(static_cast<const char*>(world_->buffers[r]), static_cast<size_t>(world_->bytes[r]));
    meet();
    return all;
  }

  std::unique_ptr<Communicator> duplicate() override {
    if (rank_ == 0) world_->child = std::make_shared<World>(size(), world_->family);
    enter({.collective = Collective::duplicate}, nullptr);
    auto copy = std::make_unique<ThreadComm>(rank_, world_->child);
    meet();
    return copy;
  }

  void abort(const std::string& why) override {
    const std::string message = fmt::format("[rank {}] {}", rank_, why);
    {
      const std::lock_guard lock(world_->family->mutex);
      if (world_->family->aborted.empty()) world_->family->aborted = message;
      world_->family->changed.notify_all();
    }
    throw Error(message);
  }

 private:
  void meet() { world_->meet(call_); }

  void enter(const Call& call, const void* buffer) {
    call_ = call;
    call_.number = number_++;
    world_->calls[static_cast<size_t>(rank_)] = call_;
    world_->buffers[static_cast<size_t>(rank_)] = buffer;
    meet();
    try {
      require_same_calls(world_->calls);
    } catch (...) {
      meet();  // all ranks have read all calls before anyone writes the next
      throw;
    }
    if (call.collective == Collective::barrier) meet();
  }

  void sum_range(const Tensor& data, const Piece& piece, DType wire) {
    parts_.resize(world_->buffers.size());
    const int64_t at = piece.begin * size_bytes(data.dtype);
    for (size_t r = 0; r < parts_.size(); ++r)
      parts_[r] = {static_cast<const char*>(world_->buffers[r]) + at, data.dtype};
    sum_parts(static_cast<char*>(data.data) + at, data.dtype, parts_, piece.end - piece.begin, wire);
  }

  void copy_from_owner(const Tensor& data, const Piece& piece) {
    if (piece.owner == rank_ || piece.begin == piece.end) return;
    const int64_t size = size_bytes(data.dtype), at = piece.begin * size;
    std::memcpy(static_cast<char*>(data.data) + at,
                static_cast<const char*>(world_->buffers[static_cast<size_t>(piece.owner)]) + at,
                static_cast<size_t>((piece.end - piece.begin) * size));
  }

  template <class Op>
  void combine(Collective collective, std::span<double> values, Op op) {
    enter({.count = static_cast<int64_t>(values.size()), .collective = collective}, values.data());
    doubles_.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      doubles_[i] = static_cast<const double*>(world_->buffers[0])[i];
      for (size_t r = 1; r < world_->buffers.size(); ++r)
        doubles_[i] = op(doubles_[i], static_cast<const double*>(world_->buffers[r])[i]);
    }
    meet();
    std::copy(doubles_.begin(), doubles_.end(), values.begin());
  }

  int rank_;
  int64_t number_ = 0;
  Call call_;
  std::shared_ptr<World> world_;
  std::vector<Part> parts_;
  std::vector<double> doubles_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_comms(int n) {
  require(n >= 1, "make_thread_comms", "needs at least one rank, got {}", n);
  auto world = std::make_shared<World>(n, std::make_shared<Family>());
  std::vector<std::unique_ptr<Communicator>> comms;
  for (int r = 0; r < n; ++r) comms.push_back(std::make_unique<ThreadComm>(r, world));
  return comms;
}

void run_thread_ranks(int n, const std::function<void(Communicator&)>& body) {
  auto comms = make_thread_comms(n);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (auto& comm : comms)
    threads.emplace_back([&, mine = comm.get()] {
      try {
        body(*mine);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      comms[static_cast<size_t>(mine->rank())].reset();
    });
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace osprey
