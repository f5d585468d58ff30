#pragma once
// One error for the whole job, not one for each rank.

#include <exception>
#include <functional>
#include <string>

#include "framework/parallel/communicator.h"

namespace osprey {

/// Thrown after the error has been printed: the process only has to end with a failure.
struct Reported : std::exception {
  const char* what() const noexcept override { return "already reported"; }
};

/// One line on stderr that begins with the program's name. `rank`: "[rank 3] ", or empty.
void print_error(const std::string& rank, const std::string& text);

/// agree() for work that returns nothing. Collective.
void together(Communicator& world, const std::function<void()>& work);

/// Runs a whole command on every rank. What all ranks agree on (Reported, AgreedError) ends them in order;
/// any other exception ends the job at once, naming the rank, so that no peer waits for ever.
void on_all_ranks(const std::function<void(Communicator&)>& command);

}  // namespace osprey
