#include "framework/train/trainer.h"

#include <cmath>

#include "framework/clock.h"
#include "framework/parallel/agree.h"
#include "framework/train/clip.h"

namespace osprey {

volatile std::sig_atomic_t Trainer::stop_requested_ = 0;

int64_t micro_steps(const TrainSpec& spec, int64_t sequence_len, int ranks) {
  const int64_t unit = spec.micro_batch_size * sequence_len * ranks;
  const int64_t nearest = std::max<int64_t>(1, (spec.global_batch_tokens + unit / 2) / unit) * unit;
  require(
      spec.global_batch_tokens % unit == 0, "train",
      "train.global_batch_tokens {} is not a multiple of micro_batch_size {} * sequence_len {} * {} ranks = "
      "{}; the nearest is {}",
      spec.global_batch_tokens, spec.micro_batch_size, sequence_len, ranks, unit, nearest);
  return spec.global_batch_tokens / unit;
}

Trainer::Trainer(const TrainSpec& spec, const TrainerParts& parts) : spec_(spec), parts_(parts) {
  const int64_t rows = spec_.micro_batch_size, length = parts_.sequence_len;
  micro_steps_ = micro_steps(spec_, length, parts_.world->size());
  const int64_t bytes = rows * length * 4 + 64;
  tokens_arena_ = std::make_unique<Arena>("token buffers", parts_.queue.device, 4 * bytes * micro_steps_);
  for (int64_t i = 0; i < micro_steps_; ++i) {
    auto make = [&] { return tokens_arena_->alloc({rows, length}, DType::i32); };
    batches_.push_back({.tokens = make(), .targets = make(), .positions = make(), .document_start = {}});
    if (parts_.documents == TrainerParts::Documents::apart) batches_.back().document_start = make();
  }
  for (const Bucket& b : parts_.params->buckets()) bucket_grads_.push_back(b.grads);
  parts_.tape->set_recompute(spec_.recompute);
  parts_.tape->set_layer_hook(parts_.reducer);
}

/// Reads all micro batches of a step; returns the targets counted on this rank.
int64_t Trainer::fill(int64_t step) {
  int64_t counted = 0;
  for (int64_t i = 0; i < micro_steps_; ++i)
    counted += parts_.train->fill(step, i, micro_steps_, batches_[static_cast<size_t>(i)]);
  return counted;
}

StepResult Trainer::step(int64_t step) {
  const double start = now_s();
  Tape& tape = *parts_.tape;
  parts_.params->begin_step();
  double counted[2] = {static_cast<double>(fill(step)), static_cast<double>(stop_requested_)};
  parts_.world->sum(counted);
  if (counted[0] == 0)
    throw AgreedError(
        fmt::format("[train] step {} has no target token in its batch; use longer sequences or "
                    "documents",
                    step));

  LossSum sum;
  tape.set_mode(Tape::Mode::train);
  for (int64_t i = 0; i < micro_steps_; ++i) {
    if (i + 1 == micro_steps_) parts_.reducer->arm();
    const Var loss = parts_.model->loss(tape, batches_[static_cast<size_t>(i)],
                                        static_cast<float>(1.0 / counted[0]), sum, {});
    tape.backward(loss);
    tape.reset();
  }
  parts_.reducer->wait_all();

  StepResult r;
  r.reduce_exposed_ms = parts_.reducer->times().exposed_ms;
  double loss[1] = {sum.loss};
  parts_.world->sum(loss);
  r.loss = loss[0] / counted[0];
  const GradientNorm gradient = clip(
      sharded_sum_of_squares(*parts_.world, parts_.queue, *parts_.plan, bucket_grads_), spec_.max_grad_norm);
  r.grad_norm = gradient.norm;
  r.learning_rate_factor = parts_.schedule(step);
  // Both numbers are the same bits on all ranks, so all ranks take the same branch.
  r.skipped = !std::isfinite(r.loss) || !gradient.finite;
  if (!r.skipped) {
    parts_.updater->step(step, r.learning_rate_factor, gradient.scale, parts_.seed);
    parts_.reducer->gather_all();
    parts_.reducer->wait_all();
  }
  skipped_total += r.skipped;
  r.step = step + 1;
  r.total_steps = spec_.total_steps();
  r.tokens = tokens_after(r.step);
  r.skipped_total = skipped_total;
  r.stopping = counted[1] > 0;
  r.seconds = now_s() - start;
  return r;
}

void Trainer::check_skips(const StepResult& result) {
  skipped_in_a_row_ = result.skipped ? skipped_in_a_row_ + 1 : 0;
  if (skipped_in_a_row_ <= spec_.max_skipped_updates) return;
  throw AgreedError(fmt::format(
      "[train] step {}: loss {} and gradient norm {} were not finite {} times in a row "
      "(train.max_skipped_updates is {}); lower the learning rate or resume from an earlier checkpoint",
      result.step, result.loss, result.grad_norm, skipped_in_a_row_, spec_.max_skipped_updates));
}

void Trainer::run(int64_t first) {
  for (StepHook* h : hooks_) h->on_start(*this);
  StepResult result;
  result.step = first;
  result.total_steps = spec_.total_steps();
  result.tokens = tokens_after(first);
  for (int64_t step = first; step < spec_.total_steps(); ++step) {
    for (StepHook* h : hooks_) h->before_step(*this, step);
    result = this->step(step);
    check_skips(result);
    for (StepHook* h : hooks_) h->after_step(*this, result);
    const bool last = result.step == spec_.total_steps();
    if (parts_.validation && (last || result.step % spec_.eval_every_steps == 0)) {
      const EvalResult eval = evaluate(result.step);
      for (StepHook* h : hooks_) h->after_eval(*this, eval);
    }
    if (result.stopping) break;
  }
  // Last attached, first ended: the final checkpoint is known before the run is declared finished.
  for (auto h = hooks_.rbegin(); h != hooks_.rend(); ++h) (*h)->on_end(*this, result);
}

EvalResult Trainer::evaluate(int64_t step) {
  const double start = now_s();
  const int64_t at_a_time = spec_.micro_batch_size * parts_.world->size();
  const int64_t rounds = (parts_.validation_sequences + at_a_time - 1) / at_a_time;
  Tape& tape = *parts_.tape;
  tape.set_mode(Tape::Mode::evaluate);
  LossSum sum;
  for (int64_t i = 0; i < rounds; ++i) {
    parts_.validation->fill(0, i, rounds, batches_.front());
    parts_.model->loss(tape, batches_.front(), 1.0f, sum, {});
    tape.reset();
  }
  double total[2] = {sum.loss, static_cast<double>(sum.tokens)};
  parts_.world->sum(total);
  EvalResult r;
  r.step = step;
  r.tokens = tokens_after(step);
  if (total[1] == 0) throw AgreedError("[train] the validation data hold no target token");
  r.loss = total[0] / total[1];
  r.counted_tokens = static_cast<int64_t>(total[1]);
  r.seconds = now_s() - start;
  return r;
}

}  // namespace osprey
