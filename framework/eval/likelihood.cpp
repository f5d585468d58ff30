#include "framework/eval/likelihood.h"

#include <algorithm>
#include <numeric>

#include "framework/memory/staging.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

/// Buffers of one batch, in host memory and where the model reads.
class Batch {
 public:
  Batch(const Queue& queue, int64_t rows, int64_t length)
      : queue_(queue), memory_("token buffers", queue.device, 16 * rows * length + 4096) {
    const auto one = [&] { return memory_.alloc({rows, length}, DType::i32); };
    view_ = {.tokens = one(), .targets = one(), .positions = one(), .document_start = {}};
    losses_ = memory_.alloc({rows * length}, DType::f32);
    sums_ = memory_.alloc({2}, DType::f64);
    for (auto* host : {&tokens_, &targets_, &positions_}) host->resize(static_cast<size_t>(rows * length));
  }

  void put(int64_t row, const ScoredText& text) {
    const int64_t length = view_.sequence(), inputs = static_cast<int64_t>(text.tokens.size()) - 1;
    const int64_t read = std::min(length, inputs), skipped = inputs - read;
    for (int64_t t = 0; t < length; ++t) {
      const auto at = static_cast<size_t>(row * length + t);
      const auto from = static_cast<size_t>(skipped + t);
      tokens_[at] = t < read ? text.tokens[from] : text.tokens[0];
      targets_[at] = t < read && t >= read - text.scored ? text.tokens[from + 1] : -1;
      positions_[at] = static_cast<int32_t>(t);
    }
  }

  /// The summed log probability of each row.
  std::vector<double> run(LanguageModel& model, Tape& tape) {
    kernels::upload(queue_, view_.tokens, tokens_.data());
    kernels::upload(queue_, view_.targets, targets_.data());
    kernels::upload(queue_, view_.positions, positions_.data());
    kernels::fill_bytes(queue_, sums_, 0);
    model.loss(tape, view_, {.grad_scale = {}, .sums = sums_, .token_losses = losses_});
    const HostCopy host(queue_, losses_);
    tape.reset();
    std::vector<double> rows(static_cast<size_t>(view_.batch()));
    for (int64_t i = 0; i < losses_.numel(); ++i)
      if (targets_[static_cast<size_t>(i)] >= 0)
        rows[static_cast<size_t>(i / view_.sequence())] -= host.tensor().as<float>()[i];
    return rows;
  }

 private:
  Queue queue_;
  Arena memory_;
  BatchView view_;
  Tensor losses_, sums_;
  std::vector<int32_t> tokens_, targets_, positions_;
};

}  // namespace

std::vector<double> log_likelihoods(LanguageModel& model, Tape& tape, std::span<const ScoredText> texts,
                                    const LikelihoodOptions& options) {
  tape.set_mode(Tape::Mode::evaluate);
  for (const ScoredText& text : texts) {
    const auto tokens = static_cast<int64_t>(text.tokens.size());
    require(text.scored > 0 && text.scored < tokens, "likelihood", "{} of {} tokens cannot be scored",
            text.scored, tokens);
    require(text.scored <= options.sequence_len, "likelihood",
            "{} tokens to score do not fit into a sequence of {}", text.scored, options.sequence_len);
  }
  std::vector<size_t> order(texts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return texts[a].tokens.size() > texts[b].tokens.size(); });
  std::vector<double> sums(texts.size());
  for (size_t first = 0; first < order.size(); first += static_cast<size_t>(options.rows)) {
    const size_t count = std::min(order.size() - first, static_cast<size_t>(options.rows));
    const auto longest = static_cast<int64_t>(texts[order[first]].tokens.size()) - 1;
    Batch batch(tape.queue(), static_cast<int64_t>(count), std::min(longest, options.sequence_len));
    for (size_t i = 0; i < count; ++i) batch.put(static_cast<int64_t>(i), texts[order[first + i]]);
    const std::vector<double> rows = batch.run(model, tape);
    for (size_t i = 0; i < count; ++i) sums[order[first + i]] = rows[i];
  }
  return sums;
}

void add_windows(std::span<const int32_t> tokens, int64_t length, int64_t stride,
                 std::vector<ScoredText>& texts) {
  const auto total = static_cast<int64_t>(tokens.size());
  for (int64_t done = 1; done < total;) {
    const int64_t end = std::min(total, done == 1 ? 1 + length : done + stride);
    const int64_t begin = std::max<int64_t>(0, end - 1 - length);
    texts.push_back(
        {tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), end - done});
    done = end;
  }
}

}  // namespace osprey
