#pragma once
#include <cstdint>

namespace osprey {

/// How often operator new was called in this process so far, by any thread. A training loop must not
/// call it after its first step.
int64_t allocations();

}  // namespace osprey
