// A job of which rank 1 dies in the way that argv[1] names, while the others wait for it in a collective.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "framework/parallel/mpi_comm.h"

using namespace osprey;

static void work(Communicator& comm, const std::string& how) {
  comm.barrier();
  if (comm.rank() == 1) {
    if (how == "kill") std::raise(SIGKILL);
    if (how == "throw") fail("victim", "the disk of this rank is full");
    if (how == "exit") std::exit(3);
    if (how == "mismatch") {
      double two[2] = {};
      comm.sum(two);
    }
  }
  double one[1] = {};
  comm.sum(one);
  comm.barrier();
}

int main(int argc, char** argv) {
  const std::string how = argc > 1 ? argv[1] : "";
  try {
    const auto comm = make_world_comm();
    if (how == "unwind") {  // a throw that passes the communicator on its way out
      comm->barrier();
      if (comm->rank() == 1) fail("victim", "unwinding");
      comm->barrier();
    }
    try {
      work(*comm, how);
    } catch (const std::exception& e) {
      comm->abort(e.what());
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
