#include "tests/support/executor/shared.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "tests/support/executor/memory.h"
#include "tests/support/executor/sanitizers.h"

namespace osprey::executor {

namespace {
constexpr char guard_byte = '\xfb';
}

SharedMemory::SharedMemory()
    : all_(static_cast<char*>(::operator new(most + 2 * guard, std::align_val_t(guard)))),
      data_(all_ + guard) {
  memset(all_, guard_byte, most + 2 * guard);
  poison(all_, most + 2 * guard);
}

SharedMemory::~SharedMemory() {
  unpoison(all_, most + 2 * guard);
  ::operator delete(all_, std::align_val_t(guard));
}

void SharedMemory::start(size_t bytes) {
  if (under_asan) {
    poison(data_, bytes_);
    unpoison(data_, bytes);
  } else {
    memset(all_, guard_byte, guard);
    memset(data_ + bytes, guard_byte, guard + bytes_ - std::min(bytes, bytes_));
  }
  memset(data_, poison_byte, bytes);
  bytes_ = bytes;
}

bool SharedMemory::holds(const void* p, size_t bytes) const {
  const char* at = static_cast<const char*>(p);
  return data_ <= at && at + bytes <= data_ + bytes_;
}

std::string SharedMemory::broken() const {
  if (under_asan) return "";
  for (size_t i = 0; i < guard; ++i)
    if (data_[bytes_ + i] != guard_byte)
      return fmt::format("byte {} of {} bytes of shared memory was written", bytes_ + i, bytes_);
  for (size_t i = 1; i <= guard; ++i)
    if (data_[-static_cast<std::ptrdiff_t>(i)] != guard_byte)
      return fmt::format("a byte {} before shared memory was written", i);
  return "";
}

}  // namespace osprey::executor
