#pragma once

#include <cstdint>

/// How often operator new ran in this process so far.
int64_t allocations();
