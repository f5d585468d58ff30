#pragma once
// Small helpers of the data tests: whole files as strings, and the text of an expected error.

#include <fstream>
#include <sstream>
#include <string>

#include "kernels/core/check.h"

namespace osprey {

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream all;
  all << in.rdbuf();
  return all.str();
}

inline void spill(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// What Error the action throws, or "no error"; anything else goes through and fails the test.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace osprey
