#pragma once
// Whether all ranks queue the same collectives, without asking the hosts each time.

#include <cstdint>
#include <unordered_set>
#include <vector>

#include "framework/parallel/collective.h"

namespace osprey {

/// Collectives that are queued on a device would pay for a comparison on every call: the hosts would meet
/// each time, and the slowest would hold up the others, which otherwise run ahead. So ranks meet
///   at close(), which ends a sequence of queued calls (once or twice a training step), and
///   at a call that makes a sequence no rank has seen before, that is everywhere in the first step and
///   nowhere in those that repeat it.
/// At a meeting, the call and a hash of all calls since the last close() are compared. A difference that
/// shows in the call itself is found before that call is queued: nothing has happened, and the ranks are in
/// step afterwards. One that shows later, because two known sequences were mixed up, is found at close() at
/// the latest; then some ranks have queued what others will never answer, and lost() says so.
/// Errors: both throw the same Error on all ranks, naming the rank, both collectives and both counts.
class CallCheck {
 public:
  /// `host` blocks, is used by nobody else meanwhile, and outlives this.
  explicit CallCheck(Communicator& host);

  /// Before a collective is queued.
  void next(const Call& call);
  /// Before a collective that all hosts take part in, or when what was queued is to be waited for.
  void close(const Call& call);
  /// How many calls came before.
  int64_t number() const { return number_; }
  /// Whether calls were made since the last close().
  bool pending() const { return !log_.empty(); }
  bool lost() const { return lost_; }

 private:
  /// What a rank shows at a meeting. Plain bytes.
  struct Row {
    Call call;
    uint64_t history = 0;
    bool operator==(const Row&) const = default;
  };
  void add(Call call);
  void meet();
  [[noreturn]] void explain();

  Communicator& host_;
  int64_t number_ = 0;
  uint64_t history_ = 0;
  std::vector<Call> log_;  // since the last close()
  std::unordered_set<uint64_t> known_;
  std::vector<Row> rows_;  // one for each rank
  std::vector<Piece> pieces_;
  bool lost_ = false;
};

}  // namespace osprey
