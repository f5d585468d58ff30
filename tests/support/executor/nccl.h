#pragma once
// What tests may do to the NCCL that tests/support/executor plays.

namespace osprey::executor {

/// From now on every communicator reports a failed peer, or all is well again.
enum class NcclHealth { well, remote_error };
void set_nccl_health(NcclHealth health);

}  // namespace osprey::executor
