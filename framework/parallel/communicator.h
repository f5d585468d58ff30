#pragma once
// How ranks cooperate: the collectives that training needs, and no more.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/queue.h"

namespace osprey {

/// A contiguous range [begin, end) of a flat buffer (in elements) that belongs to one rank.
struct Piece {
  int owner = 0;
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Piece&) const = default;
};

/// Every collective is correct at size 1. All ranks call the same collectives in the same order with equal
/// shapes, one thread of a rank at a time.
/// Async: on return the buffer holds the result, unless it is device memory and the communicator is
/// asynchronous(): then the collective is queued on a stream of its own, ordered with other work by
/// start_after() and finish_before().
/// Numerics: contributions are rounded to `wire`, then summed in fp32 in rank order 0, 1, 2, ...; the sum
/// is not rounded again (i32 wraps, f64 is summed in double). So results do not depend on timing, on who
/// owns which piece or on the algorithm below, and every rank holds the same bits. At size 1 nothing is
/// rounded.
/// Errors: every collective first compares (number of the call, collective, count, dtype, pieces) over all
/// ranks; a difference throws the same Error on all of them, naming the rank, both collectives and both
/// counts. A peer that is gone or a failed transport throws or ends the job, never hangs it. Tensors lie
/// where the communicator can move them: host memory, for NcclComm also that of its GPU.
/// Memory: scratch is kept for the next call; a call like an earlier one allocates nothing.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string kind() const = 0;  // "self", "thread", "mpi", "nccl"
  /// Which of the ranks on this host this one is, and how many there are: each takes a GPU of its own.
  virtual int local_rank() const { return rank(); }
  virtual int local_size() const { return size(); }

  /// Whether collectives on device memory are queued. start_after(): those called from now on begin after
  /// what `queue` holds now. finish_before(): what is put on `queue` from now on begins after those called so
  /// far; all ranks call it between the same collectives. Neither waits for the device, and communicators
  /// that block need neither.
  virtual bool asynchronous() const { return false; }
  virtual void start_after(const Queue& /*queue*/) {}
  virtual void finish_before(const Queue& /*queue*/) {}

  /// Sum over ranks; f32, i32 or f64, contiguous. wire is data's dtype, or bf16 for f32 data.
  virtual void all_reduce(Tensor data, DType wire) = 0;
  /// After it, rank r's pieces hold the sum over ranks; other elements of `flat` are unspecified.
  virtual void reduce_scatter(Tensor flat, std::span<const Piece> pieces, DType wire) = 0;
  /// Every piece is copied from its owner to all ranks. Any dtype.
  virtual void all_gather(Tensor flat, std::span<const Piece> pieces) = 0;
  virtual void broadcast(Tensor data, int root) = 0;
  virtual void barrier() = 0;

  /// Element-wise maximum and sum of a few host doubles (loss, flags, counters); a NaN of any rank wins.
  virtual void max(std::span<double> values) = 0;
  virtual void sum(std::span<double> values) = 0;
  /// Concatenation over ranks, in rank order, of one string each.
  virtual std::vector<std::string> gather_strings(const std::string& mine) = 0;

  /// A communicator over the same ranks whose traffic never mixes with this one's (for a thread that
  /// reduces gradients while the main thread computes).
  virtual std::unique_ptr<Communicator> duplicate() = 0;
  /// Ends the whole job, naming this rank: one failure never hangs the rest.
  [[noreturn]] virtual void abort(const std::string& why) = 0;
};

/// One rank, no transport.
std::unique_ptr<Communicator> make_self_comm();

}  // namespace osprey
