#pragma once
// What a call refuses with.

#include <string>

#include "kernels/core/check.h"

namespace osprey::test {

/// The text of the Error that `call` throws, or "accepted"; anything else goes through and fails the test.
template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace osprey::test
