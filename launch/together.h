#pragma once
// One error for the whole job, not one for each rank.

#include <exception>
#include <functional>

#include "framework/parallel/communicator.h"

namespace osprey {

/// Thrown after the error has been printed: the process only has to end with a failure.
struct Reported : std::exception {
  const char* what() const noexcept override { return "already reported"; }
};

/// Runs `work` on every rank. If it throws on any, the first such rank's message is printed once and all
/// ranks throw Reported. For work that has no collectives inside. Collective.
void together(Communicator& world, const std::function<void()>& work);

/// Runs a whole command on every rank: an exception that is not Reported ends the job at once, naming
/// the rank, so that no peer waits for ever.
void on_all_ranks(const std::function<void(Communicator&)>& command);

}  // namespace osprey
