// Counts calls of operator new in the test program. A file of its own, so that nothing is inlined.

#include "tests/framework/parallel/mpi/count_allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

static std::atomic<int64_t> count{0};
int64_t allocations() { return count; }

void* operator new(size_t bytes) {
  ++count;
  if (void* p = std::malloc(bytes ? bytes : 1)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
