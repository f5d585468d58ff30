#include "tests/support/paths.h"

namespace osprey::test {

std::string source_dir() { return OSPREY_SOURCE_DIR; }
std::string osprey_binary() { return OSPREY_BINARY; }

}  // namespace osprey::test
