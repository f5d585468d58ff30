#include "framework/scaling/record_hook.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "framework/parallel/agree.h"

namespace osprey {

int64_t averaged_steps(int64_t total_steps) { return std::max<int64_t>(1, total_steps / 50); }

RecordHook::RecordHook(std::filesystem::path file, RunRecord known, Communicator& world)
    : file_(std::move(file)), record_(std::move(known)), world_(world) {}

void RecordHook::after_step(Trainer&, const StepResult& r) {
  losses_.push_back(r.loss);
  if (static_cast<int64_t>(losses_.size()) > averaged_steps(r.total_steps)) losses_.pop_front();
}

void RecordHook::after_eval(Trainer&, const EvalResult& r) {
  const bool finite = std::isfinite(r.loss) && r.loss > 0;
  record_.validation_loss = finite ? std::optional(r.loss) : std::nullopt;
  record_.validation_standard_error = finite ? r.standard_error : std::nullopt;
  record_.validation_tokens = r.counted_tokens;
}

void RecordHook::on_end(Trainer& trainer, const StepResult& r) {
  if (r.step != r.total_steps) return;
  const bool trained = !losses_.empty();
  const auto stands = [&]() -> std::string {
    if (trained || world_.rank() != 0 || !std::filesystem::exists(file_)) return "";
    for (const RunRecord& other : read_records(file_))
      if (other.run == record_.run && other.recipe_hash == record_.recipe_hash) return "yes";
    return "";
  };
  if (!agree(world_, stands).front().empty()) return;
  if (!trained && trainer.parts().validation) after_eval(trainer, trainer.evaluate(r.step));
  if (trained) {
    const double mean =
        std::accumulate(losses_.begin(), losses_.end(), 0.0) / static_cast<double>(losses_.size());
    if (std::isfinite(mean) && mean > 0) record_.train_loss = mean;
    record_.train_loss_steps = static_cast<int64_t>(losses_.size());
  }
  agree(world_, [&] {
    if (world_.rank() == 0) append_record(file_, record_);
    return std::string();
  });
}

}  // namespace osprey
