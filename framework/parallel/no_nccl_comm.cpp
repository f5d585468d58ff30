// Linked where nccl.h or libnccl was not found.

#include "framework/parallel/nccl_comm.h"

namespace osprey {

std::unique_ptr<Communicator> make_nccl_comm(Communicator& host, Device, const NcclOptions&) {
  fail(
      "nccl",
      "{} ranks on GPUs need NCCL, and this osprey was built without it; install it (libnccl-dev, or PyPI's nvidia-nccl) "
      "and configure again, or use one rank",
      host.size());
}

}  // namespace osprey
