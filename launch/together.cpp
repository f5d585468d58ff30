#include "launch/together.h"

#include <cstdio>

#include <fmt/format.h>

#include "framework/parallel/agree.h"
#include "framework/parallel/mpi_comm.h"

namespace osprey {

void print_error(const std::string& rank, const std::string& text) {
  std::fputs(fmt::format("osprey: {}{}\n", rank, text).c_str(), stderr);
}

void together(Communicator& world, const std::function<void()>& work) {
  agree(world, [&] {
    work();
    return std::string();
  });
}

void on_all_ranks(const std::function<void(Communicator&)>& command) {
  std::unique_ptr<Communicator> world = make_world_comm();
  std::string problem;
  try {
    command(*world);
    return;
  } catch (const Reported&) {
  } catch (const AgreedError& e) {
    if (world->rank() == 0) print_error("", e.what());
  } catch (const std::exception& e) {
    problem = e.what();
  }
  if (!problem.empty()) {
    if (world->size() > 1) world->abort(problem);
    print_error("", problem);
  }
  world.reset();  // all ranks come here together: the job ends in order, without the noise of an abort
  throw Reported();
}

}  // namespace osprey
