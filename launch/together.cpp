#include "launch/together.h"

#include <cstdio>

#include "framework/parallel/mpi_comm.h"

namespace osprey {

void together(Communicator& world, const std::function<void()>& work) {
  std::string problem;
  try {
    work();
  } catch (const std::exception& e) {
    problem = *e.what() ? e.what() : "unknown error";
  }
  const std::vector<std::string> problems = world.gather_strings(problem);
  for (size_t rank = 0; rank < problems.size(); ++rank) {
    if (problems[rank].empty()) continue;
    if (world.rank() == 0) {
      if (world.size() > 1) std::fprintf(stderr, "[rank %zu] ", rank);
      std::fprintf(stderr, "%s\n", problems[rank].c_str());
    }
    throw Reported();
  }
}

void on_all_ranks(const std::function<void(Communicator&)>& command) {
  std::unique_ptr<Communicator> world = make_world_comm();
  std::string problem;
  try {
    command(*world);
    return;
  } catch (const Reported&) {
  } catch (const std::exception& e) {
    problem = e.what();
  }
  if (!problem.empty()) {
    if (world->size() > 1) world->abort(problem);
    std::fprintf(stderr, "%s\n", problem.c_str());
  }
  world.reset();  // all ranks come here together: the job ends in order, without the noise of an abort
  throw Reported();
}

}  // namespace osprey
