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
  size_t mapped() const { return (bytes + page - 1) / page * page; }
};

struct DeviceMemory {
  char* range = nullptr;
  std::map<char*, Allocation> live;  // by address
  char* next = nullptr;              // where the search for free addresses goes on: freed ones are used late
  size_t used = 0;
  int accesses = 0;
};

/// Inside a device's range everything between the first and the last live allocation is either live or mapped
/// from an empty file, where every access faults whatever the protection: one mprotect() opens and closes
/// all.
struct Memory {
  std::mutex mutex;
  char* range = nullptr;
  std::array<DeviceMemory, max_devices> devices;
  std::map<char*, size_t> pinned;
  int empty_file = -1, pattern_file = -1;
};

Memory& memory() {
  static Memory* m = [] {
    auto* made = new Memory;  // never destroyed: host threads may outlive main()
    void* p = mmap(nullptr, range_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(p != MAP_FAILED, "executor", "cannot reserve {} bytes of addresses for the GPUs' memory",
            range_bytes);
    made->range = static_cast<char*>(p);
    for (size_t d = 0; d < max_devices; ++d)
      made->devices[d].next = made->devices[d].range = made->range + d * device_bytes;
    made->empty_file = memfd_create("nothing", MFD_CLOEXEC);
    require(made->empty_file >= 0, "executor", "cannot make an empty file");
    explain_crashes();
    return made;
  }();
  return *m;
}

DeviceMemory& memory_of(Memory& m, int device) { return m.devices[static_cast<size_t>(device)]; }

int protection(const DeviceMemory& d) { return d.accesses > 0 ? PROT_READ | PROT_WRITE : PROT_NONE; }

void map_over(char* at, size_t bytes, int file = -1, off_t offset = 0) {
  const int flags = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
  require(mmap(at, bytes, PROT_READ | PROT_WRITE, flags, file, offset) != MAP_FAILED, "executor",
          "cannot map {} bytes of device memory", bytes);
}

/// From now on every access to these pages faults. Neighbours become one mapping.
void map_nothing(const Memory& m, char* at, size_t bytes) { map_over(at, bytes, m.empty_file, at - m.range); }

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
    map_over(at, bytes);
    memset(at, poison_byte, bytes);
    return;
  }
  for (size_t done = 0; done < bytes; done += pattern_bytes)
    map_over(at + done, std::min(pattern_bytes, bytes - done), pattern_file(m));
}

/// Free addresses for `bytes` (whole pages) and a page of nothing behind them; null when there are none.
char* find_room(const DeviceMemory& d, size_t bytes) {
  const auto need = static_cast<std::ptrdiff_t>(bytes + page);
  for (char* start : {d.next, d.range}) {
    char* at = start;
    auto it = d.live.upper_bound(at);
    if (it != d.live.begin()) {
      const auto& [p, a] = *std::prev(it);
      at = std::max(at, p + a.mapped() + page);
    }
    for (; it != d.live.end() && it->first - at < need; ++it) at = it->first + it->second.mapped() + page;
    if (d.range + device_bytes - at >= need) return at;
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

/// The allocation with the highest address up to `address`; live.end() when there is none.
std::map<char*, Allocation>::iterator last_before(DeviceMemory& d, const void* address) {
  const auto it = d.live.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  return it == d.live.begin() ? d.live.end() : std::prev(it);
}

/// Neighbours in one call; the page tables of what was freed between distant ones would be walked in vain.
void protect_all(const DeviceMemory& d) {
  constexpr std::ptrdiff_t far = 64 * page;
  char *begin = nullptr, *end = nullptr;
  const auto protect = [&] {
    if (begin) mprotect(begin, static_cast<size_t>(end - begin), protection(d));
  };
  for (const auto& [p, a] : d.live) {
    if (!begin || p - end > far) {
      protect();
      begin = p;
    }
    end = p + a.mapped();
  }
  protect();
}

int device_at(const Memory& m, const void* p) {
  return static_cast<int>(static_cast<size_t>(static_cast<const char*>(p) - m.range) / device_bytes);
}

}  // namespace

void* allocate(int device, size_t bytes) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  DeviceMemory& d = memory_of(m, device);
  const Allocation a{std::max<size_t>(bytes, 1)};
  if (a.bytes > device_bytes || a.mapped() > device_bytes - d.used) return nullptr;
  char* p = find_room(d, a.mapped());
  if (!p) return nullptr;
  map_poisoned(m, p, a.mapped());
  map_nothing(m, p + a.mapped(), page);
  write_guard(p, a);
  d.live.emplace(p, a);
  d.used += a.mapped();
  d.next = p + a.mapped() + page;
  protect_all(d);
  return p;
}

bool release(void* memory_to_free) {
  if (!in_device_range(memory_to_free)) return false;
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  auto* p = static_cast<char*>(memory_to_free);
  DeviceMemory& d = memory_of(m, device_at(m, p));
  const auto it = d.live.find(p);
  if (it == d.live.end()) return false;
  const Allocation a = it->second;
  mprotect(p, a.mapped(), PROT_READ | PROT_WRITE);
  const size_t broken = broken_at(p, a, page);
  unpoison(p, a.mapped());
  map_nothing(m, p, a.mapped());  // the addresses stay dead until the range has been used up
  d.used -= a.mapped();
  d.live.erase(it);
  require(broken == 0, "executor", "byte {} of an allocation of {} bytes was written", broken, a.bytes);
  return true;
}

size_t used_bytes(int device) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  return memory_of(m, device).used;
}

int device_of(const void* p, size_t bytes) {
  if (!in_device_range(p)) return -1;
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const int device = device_at(m, p);
  DeviceMemory& d = memory_of(m, device);
  const auto it = last_before(d, p);
  return it != d.live.end() && static_cast<const char*>(p) + bytes <= it->first + it->second.bytes ? device
                                                                                                   : -1;
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
  map_over(p + head, whole);
  madvise(p + head, whole, MADV_HUGEPAGE);  // fewer pages to open and close
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
  DeviceMemory& d = memory_of(m, device);
  if (d.accesses++ == 0) protect_all(d);
}

DeviceAccess::~DeviceAccess() {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  DeviceMemory& d = memory_of(m, device_);
  if (--d.accesses == 0) protect_all(d);
}

void check_guards(int device, const char* op) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  for (auto& [p, a] : memory_of(m, device).live) {
    const size_t broken = broken_at(p, a, 64);
    if (broken == 0) continue;
    write_guard(p, a);  // said once
    fail(op, "byte {} of an allocation of {} bytes was written", broken, a.bytes);
  }
}

std::string about_device_address(const void* address) {
  Memory& m = memory();
  const int device = device_at(m, address);
  DeviceMemory& d = memory_of(m, device);
  const auto it = last_before(d, address);
  if (it == d.live.end()) return fmt::format("GPU {}, before all allocations", device);
  return fmt::format("GPU {}, byte {} from the start of {} bytes", device,
                     static_cast<const char*>(address) - it->first, it->second.bytes);
}

}  // namespace osprey::executor
