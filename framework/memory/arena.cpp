#include "framework/memory/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace osprey {

static constexpr int64_t guard_bytes = 64;
static constexpr unsigned char guard_pattern = 0xa5;

static int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Arena::Arena(std::string category, Device device, int64_t capacity_bytes)
    : category_(std::move(category)), device_(device), capacity_(round_up(capacity_bytes)) {
  if (device_.kind == DeviceKind::meta || capacity_ == 0) return;
  require(device_.kind == DeviceKind::cpu, "arena", "no {} memory in this build", name(device_.kind));
  void* p = mmap(nullptr, static_cast<size_t>(capacity_), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(p != MAP_FAILED, "arena", "cannot reserve {} bytes of address space for {}", capacity_, category_);
  madvise(p, static_cast<size_t>(capacity_), MADV_HUGEPAGE);
  base_ = static_cast<char*>(p);
}

void Arena::check_guards() const {
  for (int64_t zone : guards_)
    for (int64_t i = 0; i < guard_bytes; ++i)
      require(static_cast<unsigned char>(base_[zone + i]) == guard_pattern, "arena",
              "{}: byte {} behind a tensor was overwritten", category_, i);
}

Arena::~Arena() {
  if (base_) munmap(base_, static_cast<size_t>(capacity_));
}

Tensor Arena::alloc(const Shape& shape, DType dtype) {
  int64_t bytes = 0;
  // Sizes come from recipes and may be absurd: a plan must say so instead of wrapping around.
  bool fits = !__builtin_mul_overflow(shape.numel(), size_bytes(dtype) * 2, &bytes);
  bytes = fits ? round_up(bytes / 2) : 0;
  int64_t end = 0;
  fits = fits && !__builtin_add_overflow(top_, bytes, &end) && end < INT64_MAX / 2;
  require(fits, "arena", "{} of {} need more bytes than 64 bits count; make the model or the batch smaller",
          category_, shape);
  require(device_.kind == DeviceKind::meta || top_ + bytes <= capacity_, "arena",
          "{} needs {} more bytes for {} but only {} of {} are left", category_, bytes, shape,
          capacity_ - top_, capacity_);
  Tensor t = make_tensor(base_ ? base_ + top_ : nullptr, shape, dtype, device_);
  top_ += bytes;
  if (guards_on_ && base_) {
    // Behind the last element, not behind the rounding.
    guards_.push_back(top_ - bytes + shape.numel() * size_bytes(dtype));
    top_ = round_up(guards_.back() + guard_bytes);
    require(top_ <= capacity_, "arena", "{} has no room for guard zones", category_);
    std::memset(base_ + guards_.back(), guard_pattern, guard_bytes);
  }
  high_water_ = std::max(high_water_, top_);
  return t;
}

void Arena::rewind(int64_t mark) {
  require(0 <= mark && mark <= top_, "arena", "{}: rewind to {} above the top {}", category_, mark, top_);
  if (guards_on_) check_guards();
  while (!guards_.empty() && guards_.back() >= mark) guards_.pop_back();
#ifdef OSPREY_POISON
  if (base_) std::memset(base_ + mark, 0xff, static_cast<size_t>(top_ - mark));
#endif
  top_ = mark;
}

Pool::~Pool() {
  for (const Buffer& b : buffers_)
    if (b.data) munmap(b.data, static_cast<size_t>(b.bytes));
}

int Pool::acquire(int64_t bytes) {
  bytes = (std::max<int64_t>(bytes, 1) + 4095) / 4096 * 4096;
  std::vector<int>& list = free_[bytes];
  if (!list.empty()) {
    const int index = list.back();
    list.pop_back();
    buffers_[static_cast<size_t>(index)].references = 1;
    return index;
  }
  void* p = nullptr;
  if (device_.kind == DeviceKind::cpu) {
    p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(p != MAP_FAILED, "pool", "cannot allocate {} bytes for {}", bytes, category_);
    madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  }
  require(total_ < INT64_MAX / 2 - bytes, "pool", "{} need more bytes than 64 bits count", category_);
  buffers_.push_back({p, bytes, 1});
  free_[bytes].reserve(buffers_.size());
  total_ += bytes;
  return static_cast<int>(buffers_.size()) - 1;
}

void Pool::release(int buffer) {
  Buffer& b = buffers_[static_cast<size_t>(buffer)];
  require(b.references > 0, "pool", "buffer {} of {} released twice", buffer, category_);
  if (--b.references > 0) return;
#ifdef OSPREY_POISON
  if (b.data) std::memset(b.data, 0xff, static_cast<size_t>(b.bytes));
#endif
  free_[b.bytes].push_back(buffer);
}

}  // namespace osprey
