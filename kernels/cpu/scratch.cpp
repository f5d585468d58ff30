#include "kernels/cpu/scratch.h"

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace osprey::cpu {

namespace {
struct Free {
  void operator()(void* p) const { std::free(p); }
};
struct Buffer {
  std::unique_ptr<void, Free> data;
  size_t bytes = 0;
};
}  // namespace

void* scratch(Scratch purpose, size_t bytes) {
  thread_local std::array<Buffer, static_cast<size_t>(Scratch::count)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(purpose)];
  if (buffer.bytes < bytes || !buffer.data) {
    const size_t rounded = (bytes + 4096) / 4096 * 4096;
    buffer.data.reset();
    buffer.bytes = 0;
    buffer.data.reset(std::aligned_alloc(4096, rounded));
    if (!buffer.data) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.data.get();
}

}  // namespace osprey::cpu
