#include "framework/parallel/nccl_comm.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "framework/parallel/call_check.h"
#include "framework/parallel/watchdog.h"
#include "kernels/cuda/stream.h"
#include "kernels/pointwise.h"
#include "kernels/reduce_parts.h"

namespace osprey {
namespace {

constexpr int64_t kSmallBytes = 64 << 10;  // all_reduce below this takes one round, not two

/// NCCL's communicator, which the watchdog looks at and may take away at any time.
class Link {
 public:
  operator ncclComm_t() const { return comm_; }
  void set(ncclComm_t comm) { comm_ = comm; }
  ncclComm_t take() {
    const std::lock_guard lock(mutex_);
    return comm_.exchange(nullptr);
  }
  std::string error() {
    const std::lock_guard lock(mutex_);  // not taken and freed meanwhile
    ncclResult_t state = ncclSuccess;
    const ncclComm_t c = comm_;
    if (!c || (ncclCommGetAsyncError(c, &state) == ncclSuccess &&
               (state == ncclSuccess || state == ncclInProgress)))
      return "";
    return fmt::format("NCCL reports: {} ({})", ncclGetErrorString(state), ncclGetLastError(c));
  }
  void stop() {
    if (const ncclComm_t c = take()) ncclCommAbort(c);
  }

 private:
  std::mutex mutex_;
  std::atomic<ncclComm_t> comm_{nullptr};
};

class NcclComm final : public Communicator {
 public:
  NcclComm(Communicator& host, std::unique_ptr<Communicator> owned, Device device, const NcclOptions& options)
      : owned_host_(std::move(owned)), host_(host), options_(options), check_(host) {
    require(device.kind == DeviceKind::cuda, "nccl", "moves GPU memory, got a device that is {}",
            name(device.kind));
    stream_ = kernels::open_stream(device, kernels::StreamUse::transfer);
    queue_ = {.device = device, .stream = stream_.get()};
    order_ = std::make_unique<kernels::Event>(device);
  }

  ~NcclComm() override {
    const bool orderly =
        std::uncaught_exceptions() == 0 && !check_.lost() && !(watchdog_ && watchdog_->fired());
    if (const ncclComm_t comm = link_->take()) orderly ? ncclCommDestroy(comm) : ncclCommAbort(comm);
    watchdog_.reset();
    kernels::release(queue_.device, scratch_, options_.scratch_bytes);
  }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string kind() const override { return "nccl"; }
  int local_rank() const override { return host_.local_rank(); }
  int local_size() const override { return host_.local_size(); }

  bool asynchronous() const override { return true; }

  void start_after(const Queue& queue) override {
    order_->record(queue);
    order_->hold(queue_);
  }

  void finish_before(const Queue& queue) override {
    if (check_.pending())
      watched({.collective = Collective::finish_before}, [&](const Call& c) { check_.close(c); });
    order_->record(queue_);
    order_->hold(queue);
  }

  void all_reduce(Tensor data, DType wire) override {
    const Call call = reduce_call(Collective::all_reduce, data, wire, data.device.kind);
    if (on_host(data, call)) return host_.all_reduce(data, wire);
    put(call, [&] {
      const Tensor flat = data.view({data.numel()});
      const int64_t bytes = data.numel() * size_bytes(wire);
      if (bytes <= std::min(kSmallBytes, options_.scratch_bytes / size()))
        return all_reduce_small(flat, wire);
      pieces_.clear();
      for (int r = 0; r < size(); ++r) pieces_.push_back(even_piece(data.numel(), r, size()));
      reduce(flat, pieces_, wire);
      gather(flat, pieces_);
    });
  }

  void reduce_scatter(Tensor flat, std::span<const Piece> pieces, DType wire) override {
    const Call call = pieces_call(Collective::reduce_scatter, flat, pieces, wire, size(), flat.device.kind);
    if (on_host(flat, call)) return host_.reduce_scatter(flat, pieces, wire);
    put(call, [&] { reduce(flat.view({flat.numel()}), pieces, wire); });
  }

  void all_gather(Tensor flat, std::span<const Piece> pieces) override {
    const Call call = pieces_call(Collective::all_gather, flat, pieces, flat.dtype, size(), flat.device.kind);
    if (on_host(flat, call)) return host_.all_gather(flat, pieces);
    put(call, [&] { gather(flat, pieces); });
  }

  void broadcast(Tensor data, int root) override {
    const Call call = broadcast_call(data, root, size(), data.device.kind);
    if (on_host(data, call)) return host_.broadcast(data, root);
    put(call, [&] {
      check(ncclBroadcast(data.data, data.data, static_cast<size_t>(data.bytes()), ncclInt8, root, *link_,
                          stream()),
            "ncclBroadcast");
    });
  }

  void barrier() override {
    meet({.collective = Collective::barrier});
    host_.barrier();
  }
  void max(std::span<double> values) override {
    meet({.count = std::ssize(values), .collective = Collective::max});
    host_.max(values);
  }
  void sum(std::span<double> values) override {
    meet({.count = std::ssize(values), .collective = Collective::sum});
    host_.sum(values);
  }
  std::vector<std::string> gather_strings(const std::string& mine) override {
    meet({.collective = Collective::gather_strings});
    return host_.gather_strings(mine);
  }

  std::unique_ptr<Communicator> duplicate() override {
    meet({.collective = Collective::duplicate});
    auto host = host_.duplicate();
    Communicator& h = *host;
    return std::make_unique<NcclComm>(h, std::move(host), queue_.device, options_);
  }

  void abort(const std::string& why) override { host_.abort(why); }

  /// Connects the ranks, if that is not done. Collective.
  void connect() {
    if (watchdog_ || size() == 1) return;
    scratch_ =
        static_cast<char*>(kernels::allocate(queue_.device, options_.scratch_bytes, "sums over ranks"));
    watchdog_ = std::make_unique<Watchdog>(
        host_.duplicate(), queue_.device, options_.timeout_s,
        Watchdog::Transport{[link = link_] { return link->error(); }, [link = link_] { link->stop(); }});
    watched({.collective = Collective::connect}, [&](const Call&) {
      ncclUniqueId id{};
      if (rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
      host_.broadcast(make_tensor(&id, {sizeof(id) / 4}, DType::i32), 0);
      ncclComm_t comm = nullptr;
      check(cudaSetDevice(queue_.device.index), "cudaSetDevice");
      check(ncclCommInitRank(&comm, size(), id, rank()), "connecting the ranks");
      link_->set(comm);
    });
  }

 private:
  static size_t at(int r) { return static_cast<size_t>(r); }
  cudaStream_t stream() const { return cuda::stream_of(queue_).handle(); }

  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream(), &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  static void check(cudaError_t code, const char* what) { cuda::check(code, what); }
  void check(ncclResult_t code, const char* what) const {
    if (code == ncclSuccess) return;
    if (watchdog_) watchdog_->require_alive();
    fail("nccl", "{} failed: {}; {}{}", what, ncclGetErrorString(code), ncclGetLastError(nullptr),
         code == ncclInvalidUsage ? "; every rank of a host needs a GPU of its own" : "");
  }

  void require_usable() const {
    if (watchdog_) watchdog_->require_alive();
    require(!check_.lost(), "nccl",
            "ranks queued different collectives; this communicator cannot be used any more");
  }

  /// Before what the host communicator does. Not under the watchdog: ranks may wait long for one that writes
  /// a file.
  void meet(const Call& call) {
    require_usable();
    guarded([&] { check_.close(call); });
  }
  bool on_host(const Tensor& t, const Call& call) {
    if (t.device.kind != DeviceKind::cpu) {
      require(t.device == queue_.device, name(call.collective), "moves memory of GPU {}, got {} of {} {}",
              queue_.device.index, t, name(t.device.kind), t.device.index);
      return false;
    }
    meet(call);
    return true;
  }

  /// Ends what is under way when the ranks turn out to have queued different things: it would never end.
  template <class Body>
  void guarded(const Body& body) {
    try {
      body();
    } catch (...) {
      if (check_.lost()) link_->stop();
      if (watchdog_) watchdog_->require_alive();
      throw;
    }
  }

  /// Runs body(call) under the watchdog.
  template <class Body>
  void watched(Call call, const Body& body) {
    call.number = check_.number();
    if (!watchdog_) return body(call);
    watchdog_->begin(call);
    try {
      guarded([&] { body(call); });
    } catch (...) {
      watchdog_->ended();
      throw;
    }
    watchdog_->ended();
  }

  /// Compares the call with those of the other ranks, then lets `body` put it on the stream.
  template <class Body>
  void put(Call call, const Body& body) {
    if (size() == 1) return;
    require_usable();
    call.number = check_.number();  // for the watchdog
    watched(call, [&](const Call& c) { check_.next(c); });
    connect();
    if (call.count == 0) return;
    check(cudaSetDevice(queue_.device.index), "cudaSetDevice");  // the caller may be a new thread
    watchdog_->begin(call);
    try {
      body();
    } catch (...) {
      watchdog_->ended();
      throw;
    }
    if (capturing())
      watchdog_->ended();  // events of a graph cannot be asked
    else
      watchdog_->queued(queue_);
  }

  /// NCCL calls that make progress together.
  template <class Body>
  void group(const char* what, const Body& body) {
    ncclResult_t code = ncclGroupStart();
    body([&](ncclResult_t c) { code = code == ncclSuccess ? c : code; });
    const ncclResult_t end = ncclGroupEnd();
    check(code == ncclSuccess ? end : code, what);
  }

  void all_reduce_small(const Tensor& flat, DType wire) {
    const int64_t n = flat.numel(), row = n * size_bytes(wire);
    const void* mine = flat.data;
    if (wire != flat.dtype) {
      const Tensor packed = make_tensor(scratch_ + row * rank(), {n}, wire, queue_.device);
      kernels::copy(queue_, {.y = packed, .x = flat});
      mine = packed.data;
    }
    check(ncclAllGather(mine, scratch_, static_cast<size_t>(row), ncclInt8, *link_, stream()),
          "ncclAllGather");
    kernels::reduce_parts(
        queue_,
        {.data = flat, .parts = make_tensor(scratch_, {size(), n}, wire, queue_.device), .own = rank()});
  }

  struct Message {
    void* data;
    int64_t bytes;
    int peer;
    enum { send, receive } way;
  };

  /// Every owner receives the others' parts of its pieces and adds them, window by window. One row of scratch
  /// for each peer's parts and, when they are rounded, one for what goes to each peer.
  void reduce(const Tensor& flat, std::span<const Piece> pieces, DType wire) {
    const bool rounded = wire != flat.dtype;
    const int64_t rows = size() * (rounded ? 2 : 1), alignment = 16;
    const int64_t window = options_.scratch_bytes / (rows * size_bytes(wire)) / alignment * alignment;
    require(window > 0, "nccl", "{} bytes of scratch are too few for {} ranks", options_.scratch_bytes,
            size());
    owned_.clear();
    for (int r = 0; r < size(); ++r) owned_.emplace_back(pieces, r);
    while (plan_window(flat, wire, window)) {
      group("summing over ranks", [&](auto&& add) {
        for (const Message& m : messages_) {
          const auto bytes = static_cast<size_t>(m.bytes);
          add(m.way == Message::send ? ncclSend(m.data, bytes, ncclInt8, m.peer, *link_, stream())
                                     : ncclRecv(m.data, bytes, ncclInt8, m.peer, *link_, stream()));
        }
      });
      add_window(flat, wire, window);
    }
  }

  /// Finds who sends what to whom next and rounds what this rank sends; false when all is done.
  bool plan_window(const Tensor& flat, DType wire, int64_t window) {
    const int64_t wire_size = size_bytes(wire), row = window * wire_size;
    messages_.clear();
    segments_.clear();
    bool any = false;
    for (int owner = 0; owner < size(); ++owner) {
      for (int64_t filled = 0; filled < window;) {
        const auto s = owned_[at(owner)].next(window - filled);
        const int64_t n = s.end - s.begin;
        if (n == 0) break;
        any = true;
        if (owner == rank()) {
          segments_.push_back(s);
          for (int r = 0; r < size(); ++r)
            if (r != rank())
              messages_.push_back(
                  {scratch_ + row * r + filled * wire_size, n * wire_size, r, Message::receive});
        } else {
          Tensor part = flat.columns(s.begin, s.end).view({n});
          if (wire != flat.dtype) {
            char* to = scratch_ + row * (size() + owner) + filled * wire_size;
            const Tensor packed = make_tensor(to, {n}, wire, queue_.device);
            kernels::copy(queue_, {.y = packed, .x = part});
            part = packed;
          }
          messages_.push_back({part.data, n * wire_size, owner, Message::send});
        }
        filled += n;
      }
    }
    return any;
  }

  void add_window(const Tensor& flat, DType wire, int64_t window) {
    int64_t filled = 0;
    for (const auto& s : segments_) {
      const int64_t n = s.end - s.begin;
      const Tensor all = make_tensor(scratch_, {size(), window}, wire, queue_.device);
      kernels::reduce_parts(queue_, {.data = flat.columns(s.begin, s.end).view({n}),
                                     .parts = all.columns(filled, filled + n),
                                     .own = rank()});
      filled += n;
    }
  }

  void gather(const Tensor& flat, std::span<const Piece> pieces) {
    group("gathering over ranks", [&](auto&& add) {
      for (const Piece& p : pieces) {
        if (p.begin == p.end) continue;
        void* data = static_cast<char*>(flat.data) + p.begin * size_bytes(flat.dtype);
        const auto bytes = static_cast<size_t>((p.end - p.begin) * size_bytes(flat.dtype));
        add(ncclBroadcast(data, data, bytes, ncclInt8, p.owner, *link_, stream()));
      }
    });
  }

  std::unique_ptr<Communicator> owned_host_;  // of a duplicate
  Communicator& host_;
  NcclOptions options_;
  CallCheck check_;
  kernels::StreamHandle stream_;
  Queue queue_;
  std::unique_ptr<kernels::Event> order_;
  std::shared_ptr<Link> link_ = std::make_shared<Link>();
  std::unique_ptr<Watchdog> watchdog_;  // once the ranks are connected
  char* scratch_ = nullptr;
  std::vector<Piece> pieces_;
  std::vector<Owned> owned_;
  std::vector<Message> messages_;
  std::vector<Owned::Segment> segments_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_comm(Communicator& host, Device device, const NcclOptions& options) {
  auto comm = std::make_unique<NcclComm>(host, nullptr, device, options);
  comm->connect();
  return comm;
}

}  // namespace osprey
