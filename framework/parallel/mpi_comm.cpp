#include "framework/parallel/mpi_comm.h"

#define OMPI_SKIP_MPICXX 1  // the C interface only
#include <mpi.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "framework/parallel/collective.h"

namespace osprey {
namespace {

constexpr int kCallTag = 1, kDataTag = 2;
constexpr int64_t kMessageBytes = int64_t{64} << 20;    // one message; MPI counts in int
constexpr int64_t kScratchElements = int64_t{2} << 20;  // of incoming parts, over all peers
constexpr int64_t kSmallBytes = 64 << 10;               // all_reduce below this takes one round, not two

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("mpi", "{} failed: {}", what, text);
}

[[noreturn]] void abort_job(int rank, const std::string& why) {
  std::fputs(fmt::format("[rank {}] {}\n", rank, why).c_str(), stderr);
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::_Exit(1);
}

int environment_size() {
  for (const char* key : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const char* value = std::getenv(key)) return std::atoi(value);
  return 0;
}

/// MPI is initialised while this lives.
struct Session {
  int exceptions = std::uncaught_exceptions();

  Session() {
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    int size = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    const int expected = environment_size();
    if (provided < MPI_THREAD_MULTIPLE || (expected != 0 && expected != size)) {
      MPI_Finalize();
      require(provided >= MPI_THREAD_MULTIPLE, "mpi",
              "this MPI library lacks MPI_THREAD_MULTIPLE; use Open MPI");
      fail("mpi", "the launcher started {} processes but MPI sees {}; start with the mpirun of Open MPI",
           expected, size);
    }
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (std::uncaught_exceptions() > exceptions) abort_job(rank, "an error ended this rank");
    MPI_Finalize();
  }
};

class MpiComm final : public Communicator {
 public:
  /// Takes ownership of `comm`.
  MpiComm(std::shared_ptr<Session> session, MPI_Comm comm) : session_(std::move(session)), comm_(comm) {
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    find_local_ranks();
    calls_.resize(n());
    parts_.resize(n());
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      MPI_Request send, receive;
      check(MPI_Send_init(&mine_, sizeof(Call), MPI_BYTE, r, kCallTag, comm_, &send), "MPI_Send_init");
      check(MPI_Recv_init(&calls_[at(r)], sizeof(Call), MPI_BYTE, r, kCallTag, comm_, &receive),
            "MPI_Recv_init");
      call_requests_.push_back(send);
      call_requests_.push_back(receive);
    }
  }
  ~MpiComm() override {
    if (std::uncaught_exceptions() > 0) return;  // the session aborts; freeing would wait for the peers
    for (MPI_Request& request : call_requests_) MPI_Request_free(&request);
    MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string kind() const override { return "mpi"; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }

  void all_reduce(Tensor data, DType wire) override {
    enter(reduce_call(Collective::all_reduce, data, wire));
    if (size_ == 1 || data.numel() == 0) return;
    if (data.bytes() <= kSmallBytes) return all_reduce_small(data, wire);
    pieces_.resize(n());
    for (int r = 0; r < size_; ++r) pieces_[at(r)] = even_piece(data.numel(), r, size_);
    reduce(data, pieces_, wire);
    gather(data, pieces_);
  }

  void reduce_scatter(Tensor flat, std::span<const Piece> pieces, DType wire) override {
    enter(pieces_call(Collective::reduce_scatter, flat, pieces, wire, size_));
    if (size_ > 1) reduce(flat, pieces, wire);
  }

  void all_gather(Tensor flat, std::span<const Piece> pieces) override {
    enter(pieces_call(Collective::all_gather, flat, pieces, flat.dtype, size_));
    if (size_ > 1) gather(flat, pieces);
  }

  void broadcast(Tensor data, int root) override {
    enter(broadcast_call(data, root, size_));
    auto* bytes = static_cast<char*>(data.data);
    for (int64_t done = 0; done < data.bytes(); done += kMessageBytes) {
      const int64_t len = std::min(kMessageBytes, data.bytes() - done);
      requests_.emplace_back();
      check(MPI_Ibcast(bytes + done, static_cast<int>(len), MPI_BYTE, root, comm_, &requests_.back()),
            "broadcast");
      wait(requests_);
    }
  }

  void barrier() override { enter({.collective = Collective::barrier}); }

  void max(std::span<double> values) override {
    enter({.count = std::ssize(values), .collective = Collective::max});
    combine(values, [](double a, double b) { return max_or_nan(a, b); });
  }
  void sum(std::span<double> values) override {
    enter({.count = std::ssize(values), .collective = Collective::sum});
    combine(values, [](double a, double b) { return a + b; });
  }

  std::vector<std::string> gather_strings(const std::string& mine) override {
    enter({.collective = Collective::gather_strings});
    const auto length = static_cast<int64_t>(mine.size());
    const char* rows = exchange(&length, sizeof(length));
    std::vector<std::string> all(n());
    for (size_t r = 0; r < n(); ++r) {
      int64_t bytes = 0;
      std::memcpy(&bytes, rows + r * sizeof(bytes), sizeof(bytes));
      all[r].resize(static_cast<size_t>(bytes));
    }
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      send(mine.data(), length, r);
      receive(all[at(r)].data(), std::ssize(all[at(r)]), r);
    }
    wait(requests_);
    all[at(rank_)] = mine;
    return all;
  }

  std::unique_ptr<Communicator> duplicate() override {
    enter({.collective = Collective::duplicate});
    MPI_Comm copy;
    check(MPI_Comm_dup(comm_, &copy), "MPI_Comm_dup");
    return std::make_unique<MpiComm>(session_, copy);
  }

  void abort(const std::string& why) override { abort_job(rank_, why); }

 private:
  static size_t at(int r) { return static_cast<size_t>(r); }
  size_t n() const { return static_cast<size_t>(size_); }

  void find_local_ranks() {
    MPI_Comm host;
    check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
          "MPI_Comm_split_type");
    check(MPI_Comm_rank(host, &local_rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(host, &local_size_), "MPI_Comm_size");
    check(MPI_Comm_free(&host), "MPI_Comm_free");
  }

  /// Tells all ranks what comes next, and compares.
  void enter(const Call& call) {
    mine_ = call;
    mine_.number = number_++;
    calls_[at(rank_)] = mine_;
    if (size_ == 1) return;
    check(MPI_Startall(static_cast<int>(call_requests_.size()), call_requests_.data()), "MPI_Startall");
    wait(call_requests_);
    require_same_calls(calls_);
  }

  void send(const void* data, int64_t bytes, int to) {
    for (int64_t done = 0; done < bytes; done += kMessageBytes) {
      requests_.emplace_back();
      check(MPI_Isend(static_cast<const char*>(data) + done,
                      static_cast<int>(std::min(kMessageBytes, bytes - done)), MPI_BYTE, to, kDataTag, comm_,
                      &requests_.back()),
            "MPI_Isend");
    }
  }
  void receive(void* data, int64_t bytes, int from) {
    for (int64_t done = 0; done < bytes; done += kMessageBytes) {
      requests_.emplace_back();
      check(
          MPI_Irecv(static_cast<char*>(data) + done, static_cast<int>(std::min(kMessageBytes, bytes - done)),
                    MPI_BYTE, from, kDataTag, comm_, &requests_.back()),
          "MPI_Irecv");
    }
  }

  /// Waits for all requests without holding a core for long: the other thread of this rank computes on it.
  void wait(std::vector<MPI_Request>& requests) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    auto complain = start + std::chrono::seconds(60);
    for (int64_t spins = 0;; ++spins) {
      int done = 0;
      const int code =
          MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
      if (code != MPI_SUCCESS) check(code, name(mine_.collective));
      if (done) break;
      if (spins % 16 != 15) continue;
      const auto now = Clock::now();
      if (now - start < std::chrono::microseconds(50)) {
        sched_yield();
        continue;
      }
      if (now > complain) {
        report_waiting(std::chrono::duration_cast<std::chrono::seconds>(now - start).count());
        complain = now + std::chrono::seconds(60);
      }
      const timespec pause{0, 20'000};
      nanosleep(&pause, nullptr);
    }
    if (&requests == &requests_) requests_.clear();
  }

  /// Says on stderr which ranks have not come; a job that hangs must say for whom.
  void report_waiting(long long seconds) {
    std::string missing;
    for (size_t i = 1; i < call_requests_.size(); i += 2) {
      int done = 0;
      MPI_Request_get_status(call_requests_[i], &done, MPI_STATUS_IGNORE);
      const int r = static_cast<int>(i / 2);
      if (!done) missing += fmt::format(" {}", r + (r >= rank_ ? 1 : 0));
    }
    if (missing.empty()) missing = " (all came; data is on its way)";
    std::fputs(fmt::format("[rank {}] has waited {} s in call {}, {} of {} values, for rank(s){}\n", rank_,
                           seconds, mine_.number, name(mine_.collective), mine_.count, missing)
                   .c_str(),
               stderr);
  }

  /// The bytes of all ranks, one row each, valid until the next collective.
  char* exchange(const void* data, int64_t bytes) {
    incoming_.resize(std::max(incoming_.size(), static_cast<size_t>(bytes) * n()));
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      receive(incoming_.data() + bytes * r, bytes, r);
      send(data, bytes, r);
    }
    std::memcpy(incoming_.data() + bytes * rank_, data, static_cast<size_t>(bytes));
    wait(requests_);
    return incoming_.data();
  }

  template <class Op>
  void combine(std::span<double> values, Op op) {
    if (size_ == 1 || values.empty()) return;
    const char* rows = exchange(values.data(), std::ssize(values) * 8);
    for (size_t r = 0; r < n(); ++r)
      for (size_t i = 0; i < values.size(); ++i) {
        double v = 0;
        std::memcpy(&v, rows + (r * values.size() + i) * 8, 8);
        values[i] = r == 0 ? v : op(values[i], v);
      }
  }

  void all_reduce_small(Tensor data, DType wire) {
    const void* mine = data.data;
    if (wire != data.dtype) {
      outgoing_.resize(std::max(outgoing_.size(), static_cast<size_t>(data.numel() * 2)));
      pack_bf16(reinterpret_cast<bf16*>(outgoing_.data()), static_cast<const float*>(data.data),
                data.numel());
      mine = outgoing_.data();
    }
    const int64_t row = data.numel() * size_bytes(wire);
    const char* rows = exchange(mine, row);
    for (int r = 0; r < size_; ++r) parts_[at(r)] = {rows + row * r, wire};
    sum_parts(data.data, data.dtype, parts_, data.numel(), wire);
  }

  /// Every owner receives the others' parts of its pieces and adds them, window by window.
  void reduce(const Tensor& flat, std::span<const Piece> pieces, DType wire) {
    const int64_t window = std::max<int64_t>(kScratchElements / size_, 16 << 10);
    const int64_t wire_size = size_bytes(wire), row = window * wire_size;
    auto* base = static_cast<char*>(flat.data);
    incoming_.resize(std::max(incoming_.size(), static_cast<size_t>(row) * n()));
    if (wire != flat.dtype) outgoing_.resize(std::max(outgoing_.size(), static_cast<size_t>(row) * n()));
    owned_.clear();
    for (int r = 0; r < size_; ++r) owned_.emplace_back(pieces, r);
    for (bool more = true; more;) {
      more = false;
      segments_.clear();
      for (int r = 0; r < size_; ++r) {
        int64_t filled = 0;
        while (filled < window) {
          const auto s = owned_[at(r)].next(window - filled);
          if (s.begin == s.end) break;
          const int64_t len = s.end - s.begin;
          if (r == rank_) {
            segments_.push_back(s);
            for (int from = 0; from < size_; ++from)
              if (from != rank_)
                receive(incoming_.data() + row * from + filled * wire_size, len * wire_size, from);
          } else if (wire == flat.dtype) {
            send(base + s.begin * wire_size, len * wire_size, r);
          } else {
            auto* packed = reinterpret_cast<bf16*>(outgoing_.data() + row * r) + filled;
            pack_bf16(packed, static_cast<const float*>(flat.data) + s.begin, len);
            send(packed, len * wire_size, r);
          }
          filled += len;
        }
        more = more || filled > 0;
      }
      wait(requests_);
      add_window(flat, wire, row);
    }
  }

  void add_window(const Tensor& flat, DType wire, int64_t row) {
    int64_t filled = 0;
    for (const auto& s : segments_) {
      char* out = static_cast<char*>(flat.data) + s.begin * size_bytes(flat.dtype);
      for (int r = 0; r < size_; ++r) {
        if (r == rank_)
          parts_[at(r)] = {out, flat.dtype};
        else
          parts_[at(r)] = {incoming_.data() + row * r + filled * size_bytes(wire), wire};
      }
      sum_parts(out, flat.dtype, parts_, s.end - s.begin, wire);
      filled += s.end - s.begin;
    }
  }

  /// Every owner sends its pieces to all others, straight into their buffers.
  void gather(const Tensor& flat, std::span<const Piece> pieces) {
    const int64_t size = size_bytes(flat.dtype);
    for (const Piece& p : pieces) {
      char* data = static_cast<char*>(flat.data) + p.begin * size;
      const int64_t bytes = (p.end - p.begin) * size;
      if (p.owner != rank_) {
        receive(data, bytes, p.owner);
        continue;
      }
      for (int r = 0; r < size_; ++r)
        if (r != rank_) send(data, bytes, r);
    }
    wait(requests_);
  }

  std::shared_ptr<Session> session_;
  MPI_Comm comm_;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  int64_t number_ = 0;
  Call mine_;
  std::vector<Call> calls_;
  std::vector<MPI_Request> call_requests_;  // persistent: send, receive for each peer in rank order
  std::vector<MPI_Request> requests_;
  std::vector<Piece> pieces_;
  std::vector<Owned> owned_;
  std::vector<Owned::Segment> segments_;
  std::vector<Part> parts_;
  std::vector<char> incoming_, outgoing_;
};

}  // namespace

bool launched_by_mpi() {
  for (const char* key : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"})
    if (std::getenv(key)) return true;
  return false;
}

int launched_processes() { return std::max(1, environment_size()); }

std::unique_ptr<Communicator> make_world_comm() {
  if (!launched_by_mpi()) return make_self_comm();
  auto session = std::make_shared<Session>();
  MPI_Comm world;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
  return std::make_unique<MpiComm>(std::move(session), world);
}

}  // namespace osprey
