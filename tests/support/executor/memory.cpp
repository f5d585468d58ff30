#include "tests/support/executor/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/core/check.h"
#include "tests/support/executor/crash.h"
#include "tests/support/executor/sanitizers.h"

namespace osprey::executor {

namespace {

constexpr size_t page = 4096;
constexpr size_t range_bytes = max_devices * device_bytes;
/// What guards behind the end of memory hold: NaN in all types too, but not the NaN that kernels write.
constexpr unsigned char guard_bytes[2] = {0xfd, 0x7f};
/// From here on memory is poisoned by mapping a file of poison, so that untouched pages cost nothing.
constexpr size_t pattern_bytes = size_t{4} << 20;

struct Allocation {
  size_t bytes;
  int device;
  size_t mapped() const { return (bytes + page - 1) / page * page; }
};

struct Memory {
  std::mutex mutex;
  char* range = nullptr;
  std::map<char*, Allocation> live;  // by address
  size_t next = 0;                   // where the search for free addresses goes on: freed ones are used late
  std::array<size_t, max_devices> used{};
  std::array<int, max_devices> accesses{};
  std::map<char*, size_t> pinned;
  int pattern_file = -1;
};

Memory& memory() {
  static Memory* m = [] {
    auto* made = new Memory;  // never destroyed: host threads may outlive main()
    void* p = mmap(nullptr, range_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(p != MAP_FAILED, "executor", "cannot reserve {} bytes of addresses for the GPUs' memory",
            range_bytes);
    made->range = static_cast<char*>(p);
    explain_crashes();
    return made;
  }();
  return *m;
}

int protection(const Memory& m, int device) {
  return m.accesses[static_cast<size_t>(device)] > 0 ? PROT_READ | PROT_WRITE : PROT_NONE;
}

void map_over(char* at, size_t bytes, int protect, int file = -1) {
  const int flags = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
  require(mmap(at, bytes, protect, flags, file, 0) != MAP_FAILED, "executor",
          "cannot map {} bytes of device memory", bytes);
}

int pattern_file(Memory& m) {
  if (m.pattern_file >= 0) return m.pattern_file;
  m.pattern_file = memfd_create("poison", MFD_CLOEXEC);
  const std::string bytes(pattern_bytes, static_cast<char>(poison_byte));
  require(m.pattern_file >= 0 &&
              write(m.pattern_file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
          "executor", "cannot make a file of poison");
  return m.pattern_file;
}

/// Whole pages at `at`, all poison, left readable and writable.
void map_poisoned(Memory& m, char* at, size_t bytes) {
  if (bytes < pattern_bytes) {
    map_over(at, bytes, PROT_READ | PROT_WRITE);
    memset(at, poison_byte, bytes);
    return;
  }
  for (size_t done = 0; done < bytes; done += pattern_bytes)
    map_over(at + done, std::min(pattern_bytes, bytes - done), PROT_READ | PROT_WRITE, pattern_file(m));
}

/// Free addresses for `bytes` (whole pages) and an inaccessible page behind them; null when there are none.
char* find_room(const Memory& m, size_t bytes) {
  const size_t need = bytes + page;
  for (const size_t start : {m.next, size_t{0}}) {
    size_t at = start;
    auto it = m.live.upper_bound(m.range + at);
    if (it != m.live.begin()) {
      const auto& [p, a] = *std::prev(it);
      at = std::max(at, static_cast<size_t>(p - m.range) + a.mapped() + page);
    }
    for (; it != m.live.end() && at + need > static_cast<size_t>(it->first - m.range); ++it)
      at = static_cast<size_t>(it->first - m.range) + it->second.mapped() + page;
    if (at + need <= range_bytes) return m.range + at;
  }
  return nullptr;
}

/// The rest of an allocation's last page.
void write_guard(char* p, const Allocation& a) {
  for (size_t i = a.bytes; i < a.mapped(); ++i) p[i] = static_cast<char>(guard_bytes[i % 2]);
  poison(p + a.bytes, a.mapped() - a.bytes);
}

/// The first byte of the guard that was changed, or 0.
size_t broken_at(const char* p, const Allocation& a, size_t upto) {
  if (under_asan) return 0;  // the write itself has been reported
  for (size_t i = a.bytes; i < std::min(a.mapped(), a.bytes + upto); ++i)
    if (p[i] != static_cast<char>(guard_bytes[i % 2])) return i;
  return 0;
}

std::map<char*, Allocation>::iterator holding(Memory& m, const void* address) {
  auto* p = static_cast<char*>(const_cast<void*>(address));
  auto it = m.live.upper_bound(p);
  if (it == m.live.begin()) return m.live.end();
  --it;
  return p < it->first + std::max<size_t>(it->second.bytes, 1) ? it : m.live.end();
}

void protect_all(Memory& m, int device) {
  for (const auto& [p, a] : m.live)
    if (a.device == device) mprotect(p, a.mapped(), protection(m, device));
}

}  // namespace

void* allocate(int device, size_t bytes) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const Allocation a{std::max<size_t>(bytes, 1), device};
  size_t& used = m.used[static_cast<size_t>(device)];
  if (a.mapped() > device_bytes - used) return nullptr;
  char* p = find_room(m, a.mapped());
  if (!p) return nullptr;
  map_poisoned(m, p, a.mapped());
  write_guard(p, a);
  mprotect(p, a.mapped(), protection(m, device));
  m.live.emplace(p, a);
  used += a.mapped();
  m.next = static_cast<size_t>(p - m.range) + a.mapped() + page;
  return p;
}

bool release(void* memory_to_free) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  auto* p = static_cast<char*>(memory_to_free);
  const auto it = m.live.find(p);
  if (it == m.live.end()) return false;
  const Allocation a = it->second;
  mprotect(p, a.mapped(), PROT_READ | PROT_WRITE);
  const size_t broken = broken_at(p, a, page);
  unpoison(p, a.mapped());
  map_over(p, a.mapped(), PROT_NONE);  // the addresses stay dead until the range has been used up
  m.used[static_cast<size_t>(a.device)] -= a.mapped();
  m.live.erase(it);
  require(broken == 0, "executor", "byte {} of an allocation of {} bytes was written", broken, a.bytes);
  return true;
}

size_t used_bytes(int device) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  return m.used[static_cast<size_t>(device)];
}

int device_of(const void* p, size_t bytes) {
  if (!in_device_range(p)) return -1;
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto it = holding(m, p);
  if (it == m.live.end() || static_cast<const char*>(p) + bytes > it->first + it->second.bytes) return -1;
  return it->second.device;
}

bool in_device_range(const void* p) {
  const char* address = static_cast<const char*>(p);
  return address >= memory().range && address < memory().range + range_bytes;
}

void fill(void* to, unsigned char value, size_t bytes) {
  constexpr size_t worth_dropping = size_t{1} << 20;
  auto* p = static_cast<char*>(to);
  if (value != 0 || bytes < worth_dropping || !in_device_range(to)) {
    memset(p, value, bytes);
    return;
  }
  const size_t head = (page - reinterpret_cast<uintptr_t>(p) % page) % page,
               whole = (bytes - head) / page * page;
  memset(p, 0, head);
  map_over(p + head, whole, PROT_READ | PROT_WRITE);
  memset(p + head + whole, 0, bytes - head - whole);
}

void* allocate_pinned(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, page, std::max<size_t>(bytes, 1)) != 0) return nullptr;
  memset(p, poison_byte, bytes);
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  m.pinned.emplace(static_cast<char*>(p), bytes);
  return p;
}

bool release_pinned(void* p) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  if (m.pinned.erase(static_cast<char*>(p)) == 0) return false;
  free(p);
  return true;
}

bool pinned(const void* address, size_t bytes) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  auto* p = static_cast<char*>(const_cast<void*>(address));
  auto it = m.pinned.upper_bound(p);
  if (it == m.pinned.begin()) return false;
  --it;
  return p + bytes <= it->first + it->second;
}

DeviceAccess::DeviceAccess(int device) : device_(device) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  if (m.accesses[static_cast<size_t>(device)]++ == 0) protect_all(m, device);
}

DeviceAccess::~DeviceAccess() {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  if (--m.accesses[static_cast<size_t>(device_)] == 0) protect_all(m, device_);
}

void check_guards(int device, const char* op) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  for (auto& [p, a] : m.live) {
    if (a.device != device) continue;
    const size_t broken = broken_at(p, a, 256);
    if (broken == 0) continue;
    write_guard(p, a);  // said once
    fail(op, "byte {} of an allocation of {} bytes was written", broken, a.bytes);
  }
}

std::string about_device_address(const void* address) {
  Memory& m = memory();
  auto* p = static_cast<char*>(const_cast<void*>(address));
  auto it = m.live.upper_bound(p);
  if (it == m.live.begin()) return "no allocation lies before it";
  --it;
  return fmt::format("byte {} from the start of {} bytes on GPU {}", p - it->first, it->second.bytes,
                     it->second.device);
}

}  // namespace osprey::executor
