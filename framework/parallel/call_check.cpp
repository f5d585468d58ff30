#include "framework/parallel/call_check.h"

#include <algorithm>
#include <cstring>

namespace osprey {

CallCheck::CallCheck(Communicator& host) : host_(host), rows_(static_cast<size_t>(host.size())) {
  constexpr int64_t words = sizeof(Row) / 4;
  for (int r = 0; r < host.size(); ++r) pieces_.push_back({r, r * words, (r + 1) * words});
}

void CallCheck::next(const Call& call) {
  if (host_.size() == 1) return;
  add(call);
  if (!known_.contains(history_)) meet();
}

void CallCheck::close(const Call& call) {
  if (host_.size() == 1) return;
  add(call);
  meet();
  log_.clear();
  history_ = 0;
}

/// The number of a call is left out of the history: a step that does what an earlier one did is the same
/// sequence.
void CallCheck::add(Call call) {
  call.number = number_++;
  log_.push_back(call);
  const auto mix = [this](uint64_t v) { history_ = (history_ ^ v) * 0x9e3779b97f4a7c15ull ^ history_ >> 29; };
  mix(static_cast<uint64_t>(call.count) + 1);
  mix(call.layout);
  mix(static_cast<uint64_t>(call.collective) << 16 | static_cast<uint64_t>(call.dtype) << 8 |
      static_cast<uint64_t>(call.wire));
}

void CallCheck::meet() {
  const auto me = static_cast<size_t>(host_.rank());
  rows_[me] = {log_.back(), history_};
  host_.all_gather(make_tensor(rows_.data(), {pieces_.back().end}, DType::i32), pieces_);
  if (std::all_of(rows_.begin(), rows_.end(), [&](const Row& row) { return row == rows_[me]; })) {
    known_.insert(history_);
    return;
  }
  explain();
}

/// Shows the first call in which the ranks differ, and puts all of them in step again.
void CallCheck::explain() {
  const auto bytes = host_.gather_strings(
      std::string(reinterpret_cast<const char*>(log_.data()), log_.size() * sizeof(Call)));
  std::vector<std::vector<Call>> logs;
  size_t shortest = SIZE_MAX;
  for (const std::string& b : bytes) {
    logs.emplace_back(b.size() / sizeof(Call));
    std::memcpy(logs.back().data(), b.data(), logs.back().size() * sizeof(Call));
    shortest = std::min(shortest, logs.back().size());
    number_ = std::max(number_, logs.back().back().number + 1);
  }
  size_t at = 0;
  const auto all_equal = [&] {
    return std::all_of(logs.begin(), logs.end(), [&](const auto& log) { return log[at] == logs[0][at]; });
  };
  while (at < shortest && all_equal()) ++at;
  std::vector<Call> calls;
  for (const auto& log : logs) {
    calls.push_back(log[std::min(at, log.size() - 1)]);
    lost_ = lost_ || at + 1 < log.size();  // this rank has queued the call in question
  }
  log_.clear();
  history_ = 0;
  require_same_calls(calls);
  fail("collectives", "ranks disagree about calls before {}", describe(calls[0]));
}

}  // namespace osprey
