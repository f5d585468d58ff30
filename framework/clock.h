#pragma once
// One clock for everything that measures a duration.

#include <chrono>

namespace osprey {

/// Seconds from an arbitrary start; never set back.
inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace osprey
