#include "framework/telemetry/step_trace.h"

#include "framework/files/file.h"

namespace osprey {

StepTrace::StepTrace(const Queue& queue, std::filesystem::path directory, int rank, int64_t first,
                     int64_t count)
    : queue_(queue),
      path_(std::move(directory) /
            (rank == 0 ? std::string("trace.json") : fmt::format("trace-rank-{}.json", rank))),
      rank_(rank),
      first_(first),
      count_(count),
      timeline_(queue.device) {}

void StepTrace::before_step(Trainer& trainer, int64_t step) {
  if (!watched(step)) return;
  tape_ = trainer.parts().tape;
  tape_->set_profiler(this);
  timeline_.mark(queue_);
}

void StepTrace::add(const char* op, const char* direction) {
  timeline_.mark(queue_);
  marks_.push_back({op, direction, tape_->current_layer()});
}

void StepTrace::after_step(Trainer&, const StepResult& result) {
  if (!watched(result.step - 1)) return;
  tape_->set_profiler(nullptr);
  const std::vector<double> seconds = timeline_.take_seconds();
  for (size_t i = 0; i < marks_.size(); ++i) {
    const Mark& m = marks_[i];
    events_ += fmt::format(
        "{}{{\"name\":\"{}\",\"cat\":\"{}\",\"ph\":\"X\",\"ts\":{:.3f},\"dur\":{:.3f},\"pid\":{},\"tid\":0,"
        "\"args\":{{\"step\":{},\"layer\":{}}}}}",
        events_.empty() ? "" : ",\n", m.op, m.direction, begin_us_ + seconds[i] * 1e6,
        (seconds[i + 1] - seconds[i]) * 1e6, rank_, result.step, m.layer);
  }
  begin_us_ += seconds.back() * 1e6;
  marks_.clear();
  replace_file(path_, fmt::format("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", events_));
}

}  // namespace osprey
