#include "framework/train/trainer.h"

#include <algorithm>
#include <cmath>

#include "framework/clock.h"
#include "framework/parallel/agree.h"
#include "framework/quant/freezer.h"
#include "kernels/pointwise.h"
#include "kernels/sum_of_squares.h"

namespace osprey {

using namespace kernels;

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

Trainer::Trainer(const TrainSpec& spec, const TrainerParts& parts)
    : spec_(spec), parts_(parts), graph_(parts.queue.device) {
  micro_steps_ = micro_steps(spec_, parts_.sequence_len, parts_.world->size());
  allocate();
  parts_.tape->set_recompute(spec_.recompute);
  if (spec_.updates == Updates::in_backward) {
    require(micro_steps_ == 1 && parts_.world->size() == 1 && !spec_.max_grad_norm && !parts_.freezer,
            "train.updates", "in_backward is for one rank and one micro step, without clipping or freezing");
    in_backward_ = std::make_unique<UpdatesInBackward>(parts_.queue, *parts_.params, *parts_.updater,
                                                       inputs_.scalars, parts_.seed);
    parts_.tape->set_layer_hook(in_backward_.get());
    return;
  }
  parts_.tape->set_layer_hook(parts_.reducer);
}

Trainer::~Trainer() { release_host(parts_.queue.device, host_, host_bytes_); }

int64_t Trainer::StepInputs::bytes(const Layout& l) {
  return scalar_bytes + l.view_bytes() * l.views * l.micro_steps;
}

Trainer::StepInputs::StepInputs(void* memory, Device device, const Layout& l) {
  all = make_tensor(memory, {bytes(l) / 4}, DType::i32, device);
  scalars = make_tensor(memory, {step_scalars}, DType::f64, device);
  char* at = static_cast<char*>(memory);  // null on meta
  if (at != nullptr) at += scalar_bytes;
  const auto view = [&] {
    const Tensor t = make_tensor(at, l.shape, DType::i32, device);
    if (at != nullptr) at += l.view_bytes();
    return t;
  };
  for (int64_t i = 0; i < l.micro_steps; ++i) {
    batches.push_back({.tokens = view(), .targets = view(), .positions = view(), .document_start = {}});
    if (l.views == 4) batches.back().document_start = view();
  }
}

void Trainer::allocate() {
  const Device device = parts_.queue.device;
  const StepInputs::Layout layout{.shape = {spec_.micro_batch_size, parts_.sequence_len},
                                  .views = parts_.documents == TrainerParts::Documents::apart ? 4 : 3,
                                  .micro_steps = micro_steps_};
  const int64_t bytes = StepInputs::bytes(layout), rounds = std::max<int64_t>(1, evaluation_rounds());
  const bool is_host =
      parts_.queue.target() == DeviceKind::cpu;  // reads what loaders write where they write it
  memory_ =
      std::make_unique<Arena>("token buffers", device, (is_host ? 1 : 2) * bytes + rounds * 2 * 8 + 1024);
  const auto on_device = [&] {
    return StepInputs(memory_->alloc({bytes / 4}, DType::i32).data, device, layout);
  };
  inputs_ = on_device();
  evaluation_ = memory_->alloc({rounds, 2}, DType::f64);
  host_bytes_ = 2 * (is_host ? StepInputs::scalar_bytes : bytes);
  host_ = static_cast<char*>(allocate_host(device, host_bytes_, "staging buffers"));
  for (size_t i = 0; i < flights_.size(); ++i) {
    Flight& f = flights_[i];
    char* at = host_ == nullptr ? nullptr : host_ + static_cast<int64_t>(i) * host_bytes_ / 2;
    f.done = std::make_unique<Event>(device);
    if (is_host) {
      f.inputs = inputs_;
      f.inputs.scalars = make_tensor(at, {step_scalars}, DType::f64);
    } else {
      f.inputs = StepInputs(at, {}, layout);
    }
  }
  if (is_host) return;
  landing_ = on_device();
  copy_stream_ = open_stream(device, StreamUse::transfer);
  copies_ = {.device = device, .threads = 1, .stream = copy_stream_.get()};
  landed_ = std::make_unique<Event>(device);
  taken_ = std::make_unique<Event>(device);
}

/// Brings scalars and the first `count` batches to where the device reads them. On a GPU they cross the bus
/// on a stream of their own, while the step before still computes, and wait in `landing_` until it is over.
void Trainer::send(const Flight& flight, int64_t count) {
  if (!copy_stream_) return upload_async(parts_.queue, inputs_.scalars, flight.inputs.scalars.data);
  const Tensor& last = inputs_.batches[static_cast<size_t>(count - 1)].positions;
  const Tensor& documents = inputs_.batches[static_cast<size_t>(count - 1)].document_start;
  const Tensor& end = documents.defined() ? documents : last;
  const int64_t words = end.as<int32_t>() + end.numel() - inputs_.all.as<int32_t>();
  const auto part = [&](const StepInputs& inputs) {
    return make_tensor(inputs.all.data, {words}, DType::i32, inputs.all.device);
  };
  taken_->hold(copies_);
  upload_async(copies_, part(landing_), flight.inputs.all.data);
  landed_->record(copies_);
  landed_->hold(parts_.queue);
  copy(parts_.queue, {.y = part(inputs_), .x = part(landing_)});
  taken_->record(parts_.queue);
}

/// Puts a step on the queue: batch and scalars up, the work, scalars down.
void Trainer::enqueue(int64_t step, Flight& flight) {
  flight.done->wait();  // its memory is free
  flight.start_s = now_s();
  flight.step = step;
  double counted[2] = {0, static_cast<double>(stop_requested_)};
  for (int64_t i = 0; i < micro_steps_; ++i)
    counted[0] += static_cast<double>(
        parts_.train->fill(step, i, micro_steps_, flight.inputs.batches[static_cast<size_t>(i)]));
  parts_.world->sum(counted);
  if (counted[0] == 0)
    throw AgreedError(
        fmt::format("[train] step {} has no target token in its batch; use longer sequences or "
                    "documents",
                    step));
  flight.counted = counted[0];
  flight.stopping = counted[1] > 0;
  double* scalars = flight.scalars();
  std::fill_n(scalars, step_scalars, 0.0);
  scalars[step_loss_scale] = 1.0 / counted[0];
  scalars[step_learning_rate_factor] = parts_.schedule(step);
  scalars[step_number] = static_cast<double>(step);
  send(flight, micro_steps_);
  compute_or_replay();
  download_async(parts_.queue, scalars, inputs_.scalars);
  flight.done->record(parts_.queue);
}

static Tensor scalars_between(const Tensor& scalars, int begin, int end) {
  return scalars.columns(begin, end).view({end - begin});
}

/// Forward, backward and update: all that happens on the device.
void Trainer::compute() {
  Tape& tape = *parts_.tape;
  const auto scalars = [&](int begin, int end) { return scalars_between(inputs_.scalars, begin, end); };
  parts_.params->begin_step();
  tape.set_mode(Tape::Mode::train);
  tape.set_quantization_watch(quantization_watch_);
  for (int64_t i = 0; i < micro_steps_; ++i) {
    if (i + 1 == micro_steps_ && !in_backward_) parts_.reducer->arm();
    tape.set_draw_index({.step = scalars(step_number, step_number + 1),
                         .micro_batch = i * parts_.world->size() + parts_.world->rank()});
    tape.backward(parts_.model->loss(tape, inputs_.batches[static_cast<size_t>(i)],
                                     {.grad_scale = scalars(step_loss_scale, step_loss_scale + 1),
                                      .sums = scalars(step_loss, step_tokens + 1)}));
    tape.reset();
  }
  tape.set_quantization_watch(nullptr);
  if (!in_backward_) update();
}

/// Reduction, norm, clipping, update, and the new values to all ranks.
void Trainer::update() {
  Tape& tape = *parts_.tape;
  const auto scalars = [&](int begin, int end) { return scalars_between(inputs_.scalars, begin, end); };
  parts_.reducer->wait_all();
  if (parts_.freezer) parts_.freezer->hold(scalars(step_number, step_number + 1));
  // Both the plan and the memory of gradients change where layers take turns.
  std::vector<Tensor> gradients;
  for (const Bucket& b : parts_.params->buckets()) gradients.push_back(b.grads);
  const std::vector<Tensor> owned = owned_gradients(*parts_.plan, parts_.world->rank(), gradients);
  sum_of_squares(parts_.queue, {.xs = owned, .sum = scalars(step_sum_of_squares, step_sum_of_squares + 1)});
  tape.lap("gradient norm");
  parts_.device_world->start_after(parts_.queue);
  parts_.device_world->all_reduce(scalars(step_loss, step_sum_of_squares + 1), DType::f64);
  parts_.device_world->finish_before(parts_.queue);
  decide_step(parts_.queue, {.control = inputs_.scalars, .max_grad_norm = spec_.max_grad_norm});
  parts_.updater->step(inputs_.scalars, parts_.seed);
  if (parts_.freezer) parts_.freezer->restore();
  tape.lap("optimizer");
  parts_.reducer->gather_all();
  parts_.reducer->wait_all();
  tape.lap("gather of values");
}

/// A replay writes parameters without the host's doing, and what is kept of a parameter must not look fresh
/// to a step that is being recorded: it would leave out what makes it again.
void Trainer::count_up_versions() {
  for (const auto& p : parts_.params->all())
    if (p->trainable) ++p->version;
}

/// The first steps run as they are: buffers are made and libraries choose their algorithms. Then one is
/// recorded, and again whenever other parameters are trained, or quantized in another way.
void Trainer::compute_or_replay() {
  const auto& all = parts_.params->all();
  const bool only_now =
      (quantization_watch_ != nullptr && quantization_watch_->this_step_only()) ||
      std::any_of(all.begin(), all.end(), [](const auto& p) { return p->subspace && p->subspace->refresh; });
  if (parts_.graphs == TrainerParts::Graphs::off || parts_.tape->profiled() || only_now) return compute();
  bool changed = false;
  uses_.resize(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const Use now{all[i]->trainable, all[i]->scheme, all[i]->freezing};
    changed = changed || !(uses_[i] == now);
    uses_[i] = now;
  }
  if (changed) {
    graph_.clear();
    eager_steps_ = 0;
  }
  if (eager_steps_ < 2) {
    ++eager_steps_;
    return compute();
  }
  if (!graph_.recorded()) {
    count_up_versions();
    graph_.record(parts_.queue, [&] { compute(); });
  }
  graph_.launch(parts_.queue);
  count_up_versions();
  ++replayed_;
}

/// Waits for a step's scalars.
StepResult Trainer::finish(Flight& flight) {
  flight.done->wait();
  StepResult r;
  r.step = flight.step + 1;
  r.total_steps = spec_.total_steps();
  r.tokens = tokens_after(r.step);
  r.loss = flight.scalars()[step_loss] / flight.counted;
  r.grad_norm = std::sqrt(flight.scalars()[step_sum_of_squares]);
  r.learning_rate_factor = flight.scalars()[step_learning_rate_factor];
  r.skipped = flight.scalars()[step_apply] == 0;
  skipped_total += r.skipped;
  r.skipped_total = skipped_total;
  r.reduce_exposed_ms = parts_.reducer->times().exposed_ms;
  r.stopping = flight.stopping;
  const double now = now_s();
  r.seconds = now - std::max(flight.start_s, last_finish_s_);
  last_finish_s_ = now;
  flight.step = -1;
  return r;
}

StepResult Trainer::step(int64_t step) {
  enqueue(step, flights_[0]);
  return finish(flights_[0]);
}

void Trainer::check_skips(const StepResult& result) {
  skipped_in_a_row_ = result.skipped ? skipped_in_a_row_ + 1 : 0;
  if (skipped_in_a_row_ <= spec_.max_skipped_updates) return;
  throw AgreedError(fmt::format(
      "[train] step {}: loss {} and gradient norm {} were not finite {} times in a row "
      "(train.max_skipped_updates is {}); lower the learning rate or resume from an earlier checkpoint",
      result.step, result.loss, result.grad_norm, skipped_in_a_row_, spec_.max_skipped_updates));
}

void Trainer::deliver(Flight& flight) {
  last_ = finish(flight);
  check_skips(last_);
  for (StepHook* h : hooks_) h->after_step(*this, last_);
}

/// Must this step be over, and everybody have seen it, before the next begins?
bool Trainer::must_settle(const Flight& flight) const {
  const int64_t finished = flight.step + 1;
  if (parts_.queue.device.kind == DeviceKind::cpu || flight.stopping || finished == spec_.total_steps())
    return true;
  if (parts_.validation && finished % spec_.eval_every_steps == 0) return true;
  for (const StepHook* h : hooks_)
    if (h->reads_state(finished)) return true;
  return false;
}

void Trainer::run(int64_t first) {
  for (StepHook* h : hooks_) h->on_start(*this);
  last_ = {.step = first, .total_steps = spec_.total_steps(), .tokens = tokens_after(first)};
  Flight* pending = nullptr;
  for (int64_t step = first; step < spec_.total_steps(); ++step) {
    for (StepHook* h : hooks_) h->before_step(*this, step);
    Flight& flight = flights_[static_cast<size_t>(step % 2)];
    enqueue(step, flight);
    const bool settle = must_settle(flight);
    if (pending) deliver(*pending);
    pending = settle ? nullptr : &flight;
    if (!settle) continue;
    deliver(flight);
    const bool last = last_.step == spec_.total_steps();
    if (parts_.validation && (last || last_.step % spec_.eval_every_steps == 0)) {
      const EvalResult eval = evaluate(last_.step);
      for (StepHook* h : hooks_) h->after_eval(*this, eval);
    }
    if (last_.stopping) break;
  }
  // Last attached, first ended: the final checkpoint is known before the run is declared finished.
  for (auto h = hooks_.rbegin(); h != hooks_.rend(); ++h) (*h)->on_end(*this, last_);
}

int64_t Trainer::evaluation_rounds() const {
  const int64_t at_a_time = spec_.micro_batch_size * parts_.world->size();
  return (parts_.validation_sequences + at_a_time - 1) / at_a_time;
}

/// From the sums of a rank's rounds, [nats, targets] each: totals over all ranks, and the standard error of
/// their ratio with one round of one rank as the unit that was drawn.
static EvalResult evaluated(const std::vector<double>& rounds, Communicator& world) {
  std::array<double, 6> sums{};  // nats, targets, their products of second degree, units
  for (size_t i = 0; i < rounds.size(); i += 2) {
    const double nats = rounds[i], targets = rounds[i + 1];
    if (targets == 0) continue;  // past the end of the data
    const std::array<double, 6> unit{nats, targets, nats * nats, nats * targets, targets * targets, 1};
    for (size_t k = 0; k < sums.size(); ++k) sums[k] += unit[k];
  }
  world.sum(sums);
  const auto [nats, targets, nats_nats, nats_targets, targets_targets, units] = sums;
  if (targets == 0) throw AgreedError("[train] the validation data hold no target token");
  EvalResult r;
  r.loss = nats / targets;
  r.counted_tokens = static_cast<int64_t>(targets);
  if (units < 2) return r;
  const double residual = nats_nats - 2 * r.loss * nats_targets + r.loss * r.loss * targets_targets;
  r.standard_error = std::sqrt(std::max(0.0, residual) * units / (units - 1)) / targets;
  return r;
}

void Trainer::look_at_batch(int64_t step) {
  Flight& flight = flights_.front();
  flight.done->wait();
  for (int64_t i = 0; i < micro_steps_; ++i)
    parts_.train->fill(step, i, micro_steps_, flight.inputs.batches[static_cast<size_t>(i)]);
  send(flight, micro_steps_);
  flight.done->record(parts_.queue);
  parts_.tape->set_mode(Tape::Mode::evaluate);
  for (const BatchView& batch : inputs_.batches) {
    parts_.model->loss(*parts_.tape, batch,
                       {.grad_scale = {}, .sums = evaluation_.row_range(0, 1).view({2})});
    parts_.tape->reset();
  }
}

EvalResult Trainer::evaluate(int64_t step) {
  const double start = now_s();
  const int64_t rounds = evaluation_rounds();
  Tape& tape = *parts_.tape;
  tape.set_mode(Tape::Mode::evaluate);
  fill(parts_.queue, {.y = evaluation_, .value = 0});
  for (int64_t i = 0; i < rounds; ++i) {
    Flight& flight = flights_[static_cast<size_t>(i % 2)];
    flight.done->wait();
    parts_.validation->fill(0, i, rounds, flight.inputs.batches.front());
    send(flight, 1);
    flight.done->record(parts_.queue);
    parts_.model->loss(tape, inputs_.batches.front(),
                       {.grad_scale = {}, .sums = evaluation_.row_range(i, i + 1).view({2})});
    tape.reset();
  }
  std::vector<double> sums(static_cast<size_t>(evaluation_.numel()));
  download(parts_.queue, sums.data(), evaluation_);
  EvalResult r = evaluated(sums, *parts_.world);
  r.step = step;
  r.tokens = tokens_after(step);
  r.seconds = now_s() - start;
  last_finish_s_ = now_s();
  return r;
}

}  // namespace osprey
