#pragma once
// Ranks as processes under mpirun or srun. The only way to MPI; mpi.h stays in mpi_comm.cpp.

#include <memory>

#include "framework/parallel/communicator.h"

namespace osprey {

/// True when a launcher (mpirun, srun with PMIx) started this process as one of several ranks.
bool launched_by_mpi();

/// How many processes the launcher says it started; 1 without a launcher. Does not touch MPI.
int launched_processes();

/// All processes of the job: MPI when launched_by_mpi(), else SelfComm, without touching MPI at all. The
/// last of this communicator and its duplicates to be destroyed finalises MPI; when that happens because an
/// exception unwinds the stack, the job is aborted instead, so create it outside the try block.
/// Errors: an Error when the launcher and the linked MPI library do not fit.
std::unique_ptr<Communicator> make_world_comm();

}  // namespace osprey
