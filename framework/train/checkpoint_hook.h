#pragma once
// Saving and resuming as something that attaches to the loop.

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint.h"
#include "framework/finetune/finetuning.h"
#include "framework/quant/scheme.h"
#include "framework/train/trainer.h"

namespace osprey {

/// What became of a save; told on every rank, in the thread of the loop.
struct SaveReport {
  int64_t step = 0;
  std::filesystem::path path;  // of the published checkpoint; empty when it failed
  std::optional<std::string> failure;
  double blocked_ms = 0;  // that the loop waited
  double write_ms = 0;    // that the background thread took
};

class CheckpointHook final : public StepHook {
 public:
  struct Setup {
    CheckpointSpec spec;
    std::filesystem::path directory;  // RUN/checkpoints
    Checkpointer::Texts texts;
    std::string recipe_hash;
    std::function<void(const SaveReport&)> on_save;  // may be empty
    QuantSchemes* schemes = nullptr;                 // what they measured is saved and restored; may be null
    Finetuning* finetuning = nullptr;                // its bases are saved and restored; may be null
    /// Fills all values from a checkpoint: where layers take turns, those that sleep have no master in it.
    std::function<void(const std::filesystem::path&)> load_values;
    /// Told the checkpoint that a run goes on from; throws where what it loaded itself is not what that run
    /// had loaded. May be empty.
    std::function<void(const std::filesystem::path&)> compare_base;
  };
  /// The trainer's parts must outlive the hook. Collective.
  CheckpointHook(Setup setup, Trainer& trainer);

  /// Restores masters, optimizer state and values from what checkpoint.resume means.
  /// Returns the state of the checkpoint, or nothing when the run starts anew. Collective.
  /// Errors: AgreedError: damaged files, another model, other optimizers, another seed, batch or
  /// sequence length, no measurement where the recipe needs one.
  std::optional<CheckpointState> resume();

  bool reads_state(int64_t finished) const override;
  void after_step(Trainer& trainer, const StepResult& result) override;
  /// Saves when a signal stopped the run, or when checkpoint.save_final says so, and waits.
  /// Errors: a save that failed.
  void on_end(Trainer& trainer, const StepResult& result) override;

 private:
  bool takes_turns() const { return setup_.finetuning && setup_.finetuning->takes_turns(); }
  std::vector<NamedPiece> pieces() const;
  void save(const StepResult& result);
  void settle();
  void report(const std::optional<std::string>& failure);

  Setup setup_;
  Trainer& trainer_;
  Communicator& world_;
  Checkpointer saver_;
  std::vector<NamedPiece> to_save_;
  int64_t saved_step_ = 0;  // of the last save or resume
  bool pending_ = false;    // a save is in flight; the same on all ranks
};

}  // namespace osprey
