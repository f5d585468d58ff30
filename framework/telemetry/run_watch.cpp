#include "framework/telemetry/run_watch.h"

#include <algorithm>
#include <cmath>

#include "framework/clock.h"

namespace osprey {
namespace {

/// One line of this rank, to be gathered: fields that hold no tab or newline.
std::string pack_host(const HostInfo& h) {
  return fmt::format("{}\t{}\t{}\t{}\t{}\t{}", h.name, h.cpu, h.isa, h.cores, h.memory_bytes, h.gpu);
}

std::vector<std::string> fields_of(const std::string& line, char at) {
  std::vector<std::string> out{""};
  for (const char c : line) {
    if (c == at)
      out.emplace_back();
    else
      out.back() += c;
  }
  return out;
}

/// Every host once, in rank order.
std::vector<HostInfo> hosts_of(const std::vector<std::string>& packed) {
  std::vector<HostInfo> hosts;
  for (const std::string& text : packed) {
    const auto f = fields_of(text, '\t');
    require(f.size() == 6, "telemetry", "a rank describes its host as '{}'", text);
    if (std::any_of(hosts.begin(), hosts.end(), [&](const HostInfo& h) { return h.name == f[0]; })) continue;
    hosts.push_back({f[0], f[1], f[2], std::stoll(f[3]), std::stoll(f[4]), f[5]});
  }
  return hosts;
}

/// The categories of the rank that holds most.
std::map<std::string, int64_t> largest_memory(Communicator& world,
                                              const std::map<std::string, int64_t>& mine) {
  std::string text;
  for (const auto& [name, bytes] : mine) text += fmt::format("{}\t{}\n", name, bytes);
  std::map<std::string, int64_t> largest;
  int64_t most = -1;
  for (const std::string& packed : world.gather_strings(text)) {
    std::map<std::string, int64_t> one;
    int64_t total = 0;
    for (const std::string& line : fields_of(packed, '\n'))
      if (const auto f = fields_of(line, '\t'); f.size() == 2) total += one[f[0]] = std::stoll(f[1]);
    if (total > most) most = total, largest = std::move(one);
  }
  return largest;
}

/// Is any weight quantized in the step that was, or is to be, computed?
bool quantizes(const ParamStore& params) {
  return std::any_of(params.all().begin(), params.all().end(),
                     [](const auto& p) { return p->scheme && !p->scheme->calibrates && !p->stored_format; });
}

}  // namespace

RunWatch::RunWatch(RunWatchOptions options, Communicator& world, const Queue& queue)
    : options_(std::move(options)),
      world_(world),
      queue_(queue),
      observer_(options_.telemetry, queue),
      start_s_(now_s()) {
  summary_.name = options_.name;
  summary_.version = options_.version;
  if (!options_.followed_weights.empty())
    oscillation_ = std::make_unique<OscillationTracker>(queue, options_.followed_weights);
  if (world_.rank() != 0) return;
  progress_ = std::make_unique<Progress>(options_.progress_descriptor,
                                         Progress::style_of(options_.progress_descriptor),
                                         options_.telemetry.progress_every_seconds);
  const auto tell = [this](const std::string& text) { note(text); };
  log_ = std::make_unique<MetricsLog>(options_.directory / "metrics.jsonl", options_.resumed_step, tell);
  if (options_.telemetry.tensorboard)
    events_ = std::make_unique<TfEventsWriter>(options_.directory / "tensorboard",
                                               options_.resumed_step ? *options_.resumed_step + 1 : 0, tell);
}

RunWatch::~RunWatch() {
  if (!started_ || ended_ || world_.rank() != 0) return;
  summary_.status = "failed";
  summary_.wall_s = now_s() - start_s_;
  save_summary();
  try {
    log_->finish();
    if (events_) events_->finish();
  } catch (const std::exception& e) {
    note(e.what());
  }
}

/// A run goes on without this file, and the error that ends one matters more.
void RunWatch::save_summary() {
  try {
    write_summary(options_.directory / "summary.json", summary_);
  } catch (const std::exception& e) {
    note(e.what());
  }
}

void RunWatch::on_start(Trainer& trainer) {
  HostInfo host = this_host();
  host.isa = options_.isa;
  host.gpu = options_.gpu;
  for (std::string* s : {&host.name, &host.cpu, &host.isa, &host.gpu})
    std::replace_if(
        s->begin(), s->end(), [](char c) { return c == '\t' || c == '\n'; }, ' ');
  summary_.hosts = hosts_of(world_.gather_strings(pack_host(host)));
  summary_.ranks = world_.size();
  summary_.threads_per_rank = queue_.threads;
  summary_.parameters = trainer.parts().params->numel();
  summary_.steps = trainer.spec().total_steps();
  summary_.step = options_.resumed_step.value_or(0);
  summary_.tokens = trainer.tokens_after(summary_.step);
  summary_.status = "running";
  flops_per_token_ = trainer.parts().model->flops_per_token(trainer.parts().sequence_len);
  step_tokens_ = static_cast<double>(trainer.tokens_after(1));
  // A run that goes on is in the state of its last step, whose like has been measured.
  first_quantized_ = !options_.resumed_step || !quantizes(*trainer.parts().params);
  started_ = true;
  if (!log_) return;
  MetricsEntry e("start", summary_.step, summary_.tokens);
  e.add("ranks", summary_.ranks).add("threads_per_rank", summary_.threads_per_rank);
  e.add("parameters", summary_.parameters).add("version", options_.version);
  if (options_.gemm_flops_per_second)
    e.add("gemm_tflops_per_second", *options_.gemm_flops_per_second * 1e-12);
  log_->write(e);
  save_summary();
}

void RunWatch::write_train(const StepResult& r) {
  const double rate = r.seconds > 0 ? step_tokens_ / r.seconds : 0;
  std::optional<double> percent;
  if (options_.gemm_flops_per_second)
    percent = 100.0 * rate * flops_per_token_ / *options_.gemm_flops_per_second;
  const double learning_rate = options_.learning_rate * r.learning_rate_factor;
  const bool last = r.step == r.total_steps || r.stopping;
  if (last || r.step % options_.telemetry.train_every_steps == 0) {
    MetricsEntry e("train", r.step, r.tokens);
    e.add("loss", r.loss).add("grad_norm", r.grad_norm).add("learning_rate", learning_rate);
    e.add("step_ms", r.seconds * 1e3).add("tokens_per_second", rate).add("gemm_percent", percent);
    e.add("reduce_exposed_ms", r.reduce_exposed_ms).add("skipped_updates", r.skipped_total);
    log_->write(e);
    if (events_) {
      std::vector<TfScalar> scalars{{"train/loss", r.loss},
                                    {"train/grad_norm", r.grad_norm},
                                    {"train/learning_rate", learning_rate},
                                    {"train/tokens_per_second", rate}};
      if (percent) scalars.push_back({"train/gemm_percent", *percent});
      events_->scalars(r.step, scalars);
    }
  }
  if (r.skipped)
    log_->write(
        MetricsEntry("skipped_update", r.step, r.tokens)
            .add("reason", std::isfinite(r.loss) ? "the gradient is not finite" : "the loss is not finite")
            .add("skipped_updates", r.skipped_total));
  ProgressSample p{.step = r.step,
                   .steps = r.total_steps,
                   .loss = r.loss,
                   .grad_norm = r.grad_norm,
                   .tokens_per_second = rate,
                   .gemm_percent = percent,
                   .seconds_left = left_.update(now_s(), r.step, r.total_steps),
                   .skipped_updates = r.skipped_total};
  progress_->update(p, now_s());
}

void RunWatch::before_step(Trainer& trainer, int64_t step) {
  const TelemetrySpec& t = options_.telemetry;
  const ParamStore& params = *trainer.parts().params;
  trainer.watch_quantization(nullptr);
  if (!t.quantization || !quantizes(params)) return;
  const bool first = std::exchange(first_quantized_, false);
  if (!quantization_)
    quantization_ =
        std::make_unique<QuantizationObserver>(queue_, params, oscillation_.get(), trainer.parts().freezer);
  const int64_t finished = step + 1;
  const bool due =
      finished % t.quantization_every_steps == 0 || finished == trainer.spec().total_steps() || first;
  quantization_->begin_step(due);
  if (due) quantization_step_ = finished;
  if (due || oscillation_) trainer.watch_quantization(quantization_.get());
}

bool RunWatch::reads_state(int64_t finished) const {
  if (finished == quantization_step_) return true;
  return options_.telemetry.outliers &&
         (finished % options_.telemetry.outliers_every_steps == 0 || first_step_);
}

void RunWatch::after_step(Trainer& trainer, const StepResult& r) {
  if (!first_step_) {
    counted_s_ += r.seconds;
    counted_tokens_ += step_tokens_;
  }
  const bool first = std::exchange(first_step_, false) && !options_.resumed_step;
  summary_.step = r.step;
  summary_.tokens = r.tokens;
  summary_.train_loss = r.loss;
  summary_.skipped_updates = r.skipped_total;
  if (log_) write_train(r);
  if (r.step == quantization_step_) write_quantization(r.step, r.tokens);
  const bool due = r.step % options_.telemetry.outliers_every_steps == 0 || r.step == r.total_steps || first;
  if (options_.telemetry.outliers && due && !r.stopping) measure_outliers(trainer, r.step, r.tokens);
}

void RunWatch::measure_outliers(Trainer& trainer, int64_t step, int64_t tokens) {
  const TrainerParts& parts = trainer.parts();
  observer_.reset();
  observe_both_protocols(observer_, *parts.model, *parts.tape, trainer.last_batch(),
                         options_.telemetry.osp_tokens);
  observer_.merge(world_);
  if (!log_) return;
  const std::vector<OutlierRow> rows = observer_.result();
  for (const OutlierRow& row : rows) log_->write(outlier_entry(row, step, tokens));
  if (events_) write_outliers(*events_, step, rows);
}

void RunWatch::write_quantization(int64_t step, int64_t tokens) {
  const std::vector<QuantizationRow> rows = quantization_->result(world_);
  if (!log_) return;
  for (const QuantizationRow& row : rows) log_->write(quantization_entry(row, step, tokens));
  if (events_) osprey::write_quantization(*events_, step, rows);
}

void RunWatch::after_eval(Trainer& trainer, const EvalResult& r) {
  summary_.validation_loss = r.loss;
  if (!log_) return;
  log_->write(MetricsEntry("eval", r.step, r.tokens)
                  .add("quantization", quantizes(*trainer.parts().params) ? "as trained" : "none")
                  .add("loss", r.loss)
                  .add("standard_error", r.standard_error)
                  .add("perplexity", std::exp(r.loss))
                  .add("tokens_evaluated", r.counted_tokens)
                  .add("eval_ms", r.seconds * 1e3));
  if (events_) {
    const std::vector<TfScalar> scalars{{"eval/loss", r.loss}, {"eval/perplexity", std::exp(r.loss)}};
    events_->scalars(r.step, scalars);
  }
  note(fmt::format("step {}: validation loss {:.4f}, perplexity {:.2f}", r.step, r.loss, std::exp(r.loss)));
}

void RunWatch::checkpoint(int64_t step, const std::string& path, const std::optional<std::string>& failure,
                          double blocked_ms, double write_ms) {
  if (!log_) return;
  MetricsEntry e("checkpoint", step, step * static_cast<int64_t>(step_tokens_));
  if (!failure) e.add("path", path);
  e.add("failure", failure).add("blocked_ms", blocked_ms).add("write_ms", write_ms);
  log_->write(e);
  if (failure) note(fmt::format("step {}: the checkpoint was not saved: {}", step, *failure));
}

void RunWatch::write(const MetricsEntry& entry) {
  if (log_) log_->write(entry);
}

void RunWatch::note(const std::string& text) {
  if (progress_) progress_->note(text);
}

void RunWatch::on_end(Trainer&, const StepResult& r) {
  if (options_.memory_bytes) summary_.memory_peak_bytes = largest_memory(world_, options_.memory_bytes());
  ended_ = true;
  if (!log_) return;
  summary_.status = r.step == r.total_steps ? "finished" : "stopped";
  summary_.wall_s = now_s() - start_s_;
  if (counted_s_ > 0) {
    summary_.tokens_per_second = counted_tokens_ / counted_s_;
    if (options_.gemm_flops_per_second)
      summary_.gemm_percent =
          100.0 * *summary_.tokens_per_second * flops_per_token_ / *options_.gemm_flops_per_second;
  }
  log_->write(MetricsEntry("end", summary_.step, summary_.tokens)
                  .add("status", summary_.status)
                  .add("wall_s", summary_.wall_s));
  save_summary();
  log_->finish();
  if (events_) events_->finish();
  progress_->finish();
}

}  // namespace osprey
