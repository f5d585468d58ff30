#pragma once
// Collectives on GPU memory. The only way to NCCL; nccl.h stays in nccl_comm.cpp.

#include <memory>

#include "framework/parallel/communicator.h"

namespace osprey {

struct NcclOptions {
  double timeout_s = 600;                     // a collective that takes longer ends the job
  int64_t scratch_bytes = int64_t{64} << 20;  // of GPU memory, for parts that are to be added
};

/// A communicator over the ranks of `host`, each of which has a GPU of its own: collectives on tensors of
/// `device` are queued on a stream of high priority, everything else goes to `host`, which must outlive this
/// and may be used beside it. Collective. Sums are those of `host`, bit for bit.
/// Async: see Communicator::start_after(). Two communicators of one GPU must not have collectives under way
/// at the same time unless the GPU has room for both; order them by start_after() and finish_before().
/// A graph may capture collectives: ranks are compared while it is captured, and then not again; nor is each
/// collective of a graph watched.
/// Memory: scratch_bytes on the GPU and what NCCL takes; a duplicate takes neither before its first
/// collective on device memory.
/// Errors: ranks that disagree are told so as in CallCheck; when some have queued what others never will, the
/// communicator is of no use any more and says so. What takes longer than timeout_s, or fails on the way,
/// ends the job by Watchdog. Throws where this build has no NCCL, and what NCCL says when ranks cannot
/// connect.
std::unique_ptr<Communicator> make_nccl_comm(Communicator& host, Device device,
                                             const NcclOptions& options = {});

}  // namespace osprey
