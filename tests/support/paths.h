#pragma once
#include <string>

namespace osprey::test {

/// Root of the source tree and the built program. In one file, so that tests of any checkout compile to
/// the same object.
std::string source_dir();
std::string osprey_binary();

}  // namespace osprey::test
