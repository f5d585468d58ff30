#pragma once
// Which keys a row of causal attention sees. Host and device.

#include "kernels/numerics/bf16.h"

namespace osprey {

/// The first key that row `row` of a sequence sees; `row` itself is the last. It lies in the row's document,
/// which starts at `document_start`, and within the last `window` keys (0: any number).
OSPREY_HD int64_t first_visible_key(int64_t row, int64_t document_start, int64_t window) {
  const int64_t nearest = window > 0 && row >= window ? row - window + 1 : 0;
  const int64_t first = document_start > nearest ? document_start : nearest;
  return first > row ? row : first;
}

}  // namespace osprey
