#pragma once
// Ranks as threads of one process: for tests of everything that cooperates.

#include <functional>
#include <memory>
#include <vector>

#include "framework/parallel/communicator.h"

namespace osprey {

/// n connected communicators, one for each thread. abort() throws, and makes every collective of the other
/// ranks throw. Destroying one makes the others throw "rank r left" instead of waiting for it.
std::vector<std::unique_ptr<Communicator>> make_thread_comms(int n);

/// Runs body(comm) on n threads, one for each rank, and rethrows the first error of any of them.
void run_thread_ranks(int n, const std::function<void(Communicator&)>& body);

}  // namespace osprey
