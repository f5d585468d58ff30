#include "framework/train/checkpoint_hook.h"

#include "framework/parallel/agree.h"
#include "kernels/core/check.h"

namespace osprey {

CheckpointHook::CheckpointHook(Setup setup, Trainer& trainer)
    : setup_(std::move(setup)),
      trainer_(trainer),
      world_(*trainer.parts().world),
      saver_(setup_.directory, setup_.spec.keep, world_, setup_.texts),
      to_save_(pieces_to_save(world_, pieces())) {}

std::vector<NamedPiece> CheckpointHook::pieces() const {
  std::vector<NamedPiece> all;
  for (const Updater::Group& g : trainer_.parts().updater->groups()) {
    auto some = named_pieces(g.pieces, g.states);
    all.insert(all.end(), std::make_move_iterator(some.begin()), std::make_move_iterator(some.end()));
  }
  if (setup_.finetuning) {
    const auto bases = setup_.finetuning->pieces();
    all.insert(all.end(), bases.begin(), bases.end());
  }
  return all;
}

std::optional<CheckpointState> CheckpointHook::resume() {
  const auto found = agree(world_, [&] {
    if (world_.rank() != 0) return std::string();
    const auto path = find_checkpoint(setup_.spec.resume, setup_.directory);
    // Checkpoints that this run has not reached yet would be taken for its newest ones.
    const int64_t from = path ? read_checkpoint_state(*path).step : 0;
    const auto existing = list_checkpoints(setup_.directory);
    require(
        existing.empty() || existing.back().step <= from, "checkpoint",
        "{} belongs to an earlier run that went further than step {}, where this one starts; give this run "
        "another run.name, set checkpoint.resume to auto, or delete the later checkpoints",
        existing.empty() ? "" : existing.back().path.string(), from);
    return path ? path->string() : std::string();
  });
  if (found[0].empty()) return std::nullopt;
  const std::filesystem::path path = found[0];

  CheckpointState state;
  agree(world_, [&] {
    state = read_checkpoint_state(path);
    const auto seed = static_cast<int64_t>(trainer_.parts().seed);
    require(
        state.seed == seed, "checkpoint",
        "{} was trained with run.seed {}, the recipe says {}; every random draw would differ from here on",
        path.string(), state.seed, seed);
    // By division: a product of what a file says may overflow.
    const int64_t batch = trainer_.spec().global_batch_tokens;
    require(
        state.tokens % batch == 0 && state.tokens / batch == state.step, "checkpoint",
        "{} stands at {} tokens after {} steps, this recipe takes {} a step; train.global_batch_tokens must "
        "stay {}",
        path.string(), state.tokens, state.step, batch, state.step > 0 ? state.tokens / state.step : batch);
    const int64_t length = trainer_.parts().sequence_len, sequences = state.sequences;
    require(
        state.step == 0 ||
            (sequences > 0 && state.tokens % sequences == 0 && state.tokens / sequences == length),
        "checkpoint",
        "{} read its {} tokens as {} sequences, this recipe has {} tokens in each and would read other data from "
        "here on; data.sequence_len must stay {}, or start from the model alone with model.path",
        path.string(), state.tokens, sequences, length, sequences > 0 ? state.tokens / sequences : length);
    if (setup_.schemes)
      setup_.schemes->restore(trainer_.parts().queue, world_.rank(), state.patterns, state.step);
    return std::string();
  });
  if (setup_.finetuning) setup_.finetuning->stand_after(state.step);
  if (takes_turns())
    agree(world_, [&] {
      setup_.load_values(path);
      return std::string();
    });
  if (setup_.compare_base)
    agree(world_, [&] {
      setup_.compare_base(path);
      return std::string();
    });
  load_pieces(path, world_, trainer_.parts().queue, pieces());
  const TrainerParts& parts = trainer_.parts();
  parts.updater->round_values();
  parts.reducer->gather_all();
  parts.reducer->wait_all();
  trainer_.skipped_total = state.skipped_steps;
  saved_step_ = state.step;
  return state;
}

void CheckpointHook::report(const std::optional<std::string>& failure) {
  SaveReport r{saved_step_, {}, failure, saver_.blocked_ms(), saver_.write_ms()};
  if (!failure) r.path = setup_.directory / checkpoint_name(saved_step_);
  if (setup_.on_save) setup_.on_save(r);
}

/// Waits for the save in flight. All ranks know the same outcome afterwards.
void CheckpointHook::settle() {
  if (!pending_) return;
  pending_ = false;
  std::optional<std::string> failure;
  try {
    saver_.wait();
  } catch (const AgreedError& e) {
    failure = e.what();
  }
  report(failure);
  if (failure && setup_.spec.on_error == CheckpointSpec::OnError::stop) throw AgreedError(*failure);
}

void CheckpointHook::save(const StepResult& result) {
  settle();
  const Trainer& t = trainer_;
  CheckpointState state;
  state.step = result.step;
  state.tokens = t.tokens_after(result.step);
  state.sequences = state.tokens / t.parts().sequence_len;
  state.skipped_steps = t.skipped_total;
  state.seed = static_cast<int64_t>(t.parts().seed);
  state.world_size = world_.size();
  state.recipe_hash = setup_.recipe_hash;
  if (setup_.schemes) state.patterns = setup_.schemes->patterns(t.parts().queue, world_);
  if (takes_turns()) to_save_ = pieces_to_save(world_, pieces());
  saver_.save(t.parts().queue, state, to_save_, named_values(*t.parts().params));
  saved_step_ = result.step;
  pending_ = true;
}

bool CheckpointHook::reads_state(int64_t finished) const {
  return setup_.spec.every_steps && finished % *setup_.spec.every_steps == 0;
}

void CheckpointHook::after_step(Trainer&, const StepResult& result) {
  if (pending_) {
    // Ranks finish at slightly different times; whoever acts alone would leave the others waiting.
    double busy[1] = {saver_.busy() ? 1.0 : 0.0};
    world_.max(busy);
    if (busy[0] == 0) settle();
  }
  if (reads_state(result.step)) save(result);
}

void CheckpointHook::on_end(Trainer&, const StepResult& result) {
  const bool wanted = result.stopping || (result.step == result.total_steps && setup_.spec.save_final);
  if (wanted && result.step != saved_step_) save(result);
  if (!pending_) return;
  pending_ = false;
  saver_.wait();
  report(std::nullopt);
}

}  // namespace osprey
