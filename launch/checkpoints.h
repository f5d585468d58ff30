#pragma once
// What `osprey train` does about its run directory: the lock, the checkpoints, and where to go on.

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "framework/checkpoint/directory.h"
#include "framework/data/tokenizer.h"
#include "framework/train/checkpoint_hook.h"
#include "launch/session.h"

namespace osprey {

/// <run.output_dir>/<run.name>.
std::filesystem::path run_directory(const Recipe& recipe);

/// 16 hexadecimal digits of the resolved recipe.
std::string recipe_hash(const Recipe& recipe);

/// Takes the run directory; null on other ranks than 0. Collective.
/// Errors: AgreedError, when another run writes into it.
std::unique_ptr<RunLock> lock_run(const Recipe& recipe, Communicator& world);

/// The hook that saves. `chat_template` is the Jinja that conversations were written with, or empty.
/// Collective.
std::unique_ptr<CheckpointHook> make_checkpoint_hook(const Recipe& recipe,
                                                     std::shared_ptr<const Tokenizer> tokenizer,
                                                     Trainer& trainer, Session& session,
                                                     std::function<void(const SaveReport&)> on_save,
                                                     const std::string& chat_template = {});

/// Restores the run; returns the step it goes on from, or nothing when it starts anew. Collective.
/// Errors: see CheckpointHook::resume.
std::optional<int64_t> resume_run(CheckpointHook& hook);

}  // namespace osprey
