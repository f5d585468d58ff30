#include "framework/memory/arena.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/device.h"

namespace osprey {

static constexpr int64_t guard_bytes = 64;
static constexpr unsigned char guard_pattern = 0xa5;

static int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Arena::Arena(std::string category, Device device, int64_t capacity_bytes, Place place)
    : category_(std::move(category)), device_(device), place_(place), capacity_(round_up(capacity_bytes)) {
  base_ = static_cast<char*>(place_ == Place::device ? kernels::allocate(device_, capacity_, category_)
                                                     : kernels::allocate_host(device_, capacity_, category_));
}

Tensor Arena::guard_zone(int64_t at) const {
  // In whole f64, so that any tensor type behind it is covered without a type for bytes.
  return make_tensor(base_ + at, {guard_bytes / 8}, DType::f64, device_);
}

void Arena::check_guards() const {
  for (int64_t zone : guards_) {
    std::array<unsigned char, guard_bytes> found;
    kernels::download(queue_, found.data(), guard_zone(zone));
    for (int64_t i = 0; i < guard_bytes; ++i)
      require(found[static_cast<size_t>(i)] == guard_pattern, "arena",
              "{}: byte {} behind a tensor was overwritten", category_, i);
  }
}

Arena::~Arena() {
  place_ == Place::device ? kernels::release(device_, base_, capacity_)
                          : kernels::release_host(device_, base_, capacity_);
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
    kernels::fill_bytes(queue_, guard_zone(guards_.back()), guard_pattern);
  }
  high_water_ = std::max(high_water_, top_);
  return t;
}

void Arena::rewind(int64_t mark) {
  require(0 <= mark && mark <= top_, "arena", "{}: rewind to {} above the top {}", category_, mark, top_);
  if (guards_on_) check_guards();
  while (!guards_.empty() && guards_.back() >= mark) guards_.pop_back();
#ifdef OSPREY_POISON
  if (base_ && device_.kind == DeviceKind::cpu)
    std::memset(base_ + mark, 0xff, static_cast<size_t>(top_ - mark));
#endif
  top_ = mark;
}

Pool::~Pool() {
  for (const Buffer& b : buffers_)
    if (!b.reserved) kernels::release(device_, b.data, b.bytes);
  kernels::release(device_, reserved_, reserved_bytes_);
}

void Pool::reserve(int64_t bytes) {
  require(buffers_.empty() && !reserved_, "pool", "{} are reserved too late", category_);
  reserved_ = static_cast<char*>(kernels::allocate(device_, bytes, category_));
  reserved_bytes_ = bytes;
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
  require(total_ < INT64_MAX / 2 - bytes, "pool", "{} need more bytes than 64 bits count", category_);
  const bool reserved = reserved_ && total_ + bytes <= reserved_bytes_;
  void* p = reserved ? reserved_ + total_ : kernels::allocate(device_, bytes, category_);
  buffers_.push_back({p, bytes, 1, reserved});
  free_[bytes].reserve(buffers_.size());
  total_ += bytes;
  return static_cast<int>(buffers_.size()) - 1;
}

void Pool::release(int buffer) {
  Buffer& b = buffers_[static_cast<size_t>(buffer)];
  require(b.references > 0, "pool", "buffer {} of {} released twice", buffer, category_);
  if (--b.references > 0) return;
#ifdef OSPREY_POISON
  if (b.data && device_.kind == DeviceKind::cpu) std::memset(b.data, 0xff, static_cast<size_t>(b.bytes));
#endif
  free_[b.bytes].push_back(buffer);
}

}  // namespace osprey
