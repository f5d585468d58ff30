#pragma once
// Whether a run will fit: its planned memory against what the machine has, before anything is allocated.

#include <cstdint>
#include <string>
#include <vector>

#include "framework/parallel/communicator.h"
#include "kernels/device.h"
#include "launch/session.h"

namespace osprey {

/// Memory that this process and its peers here may still take: of the machine and of the control group.
/// Units: bytes; INT64_MAX where the system does not say.
int64_t available_memory_bytes();

/// What a control group may still take, from the text of its files memory.max, memory.current and
/// memory.stat. Pages of files that were not used lately (inactive_file) are given back on demand and count
/// as free. Units: bytes; INT64_MAX where there is no limit, or the first two are no numbers.
int64_t control_group_spare_bytes(const std::string& max, const std::string& current,
                                  const std::string& stat);

/// Why a rank that holds `categories` does not fit, the recipe keys that change it included; empty when it
/// does. Units: `host_bytes` is what all `ranks` of this host take together.
std::string memory_problem(const std::vector<MemoryCategory>& categories, int64_t host_bytes, int ranks,
                           int64_t available_bytes);

/// Why a GPU with this much free memory does not hold the device's part of `categories`; empty when it does.
/// The driver, cuDNN and NCCL take some themselves: gpu_reserve_bytes is kept for them.
std::string gpu_memory_problem(const std::vector<MemoryCategory>& categories, const kernels::GpuInfo& gpu);
inline constexpr int64_t gpu_reserve_bytes = int64_t{1} << 30;

/// Throws on the ranks of every host that cannot hold its ranks, or whose GPU cannot hold one. Gathers, so it
/// comes before any of them allocates. Errors: names the largest category and the keys to change; see
/// memory_problem. Collective.
void require_memory(const std::vector<MemoryCategory>& categories, Device device, Communicator& world);

}  // namespace osprey
