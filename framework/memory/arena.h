#pragma once
// The only allocators inside the training loop. All of them run on Device::meta too, with null
// pointers, so that `osprey plan` books what a run will use.

#include <cstddef>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// A stack of memory: forward pushes, backward pops.
/// On the CPU the capacity is virtual address space; pages become real when they are first written, so the
/// high-water mark is what the run really uses. On a GPU it is taken at once.
class Arena {
 public:
  /// Where an arena of a GPU lies. `host`: pinned host memory, which kernels reach over the bus.
  enum class Place { device, host };
  Arena(std::string category, Device device, int64_t capacity_bytes, Place place = Place::device);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// A contiguous tensor, 64-byte aligned. Errors: throws when the capacity is exceeded.
  Tensor alloc(const Shape& shape, DType dtype);
  int64_t mark() const { return top_; }
  /// Frees everything above `mark`. With OSPREY_POISON the freed bytes become NaN patterns.
  void rewind(int64_t mark);

  /// Puts a patterned zone behind every tensor, checked when it is freed (tests). `queue` reaches the memory.
  void enable_guards(const Queue& queue) { guards_on_ = true, queue_ = queue; }
  /// Errors: throws if a guard zone was written.
  void check_guards() const;

  const std::string& category() const { return category_; }
  int64_t used_bytes() const { return top_; }
  int64_t high_water_bytes() const { return high_water_; }

 private:
  std::string category_;
  Device device_;
  Place place_;
  char* base_ = nullptr;
  int64_t capacity_ = 0, top_ = 0, high_water_ = 0;
  Tensor guard_zone(int64_t at) const;

  bool guards_on_ = false;
  Queue queue_;
  std::vector<int64_t> guards_;  // offsets of the zones, ascending
};

/// Gradients of activations: buffers by size, kept for reuse, counted by reference. After the first
/// step every request finds a buffer, so there is no malloc. What reserve() took holds the first buffers.
class Pool {
 public:
  Pool(std::string category, Device device) : category_(std::move(category)), device_(device) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// Takes memory for buffers of this many bytes together, in one piece. Before the first acquire().
  void reserve(int64_t bytes);
  /// Index of a buffer of at least this size, with one reference.
  int acquire(int64_t bytes);
  void* data(int buffer) const { return buffers_[static_cast<size_t>(buffer)].data; }
  void retain(int buffer) { ++buffers_[static_cast<size_t>(buffer)].references; }
  int references(int buffer) const { return buffers_[static_cast<size_t>(buffer)].references; }
  void release(int buffer);

  const std::string& category() const { return category_; }
  /// Bytes of all buffers ever made: they are never given back during a run.
  int64_t high_water_bytes() const { return total_; }

 private:
  struct Buffer {
    void* data;
    int64_t bytes;
    int references;
    bool reserved;  // a part of reserved_
  };
  std::string category_;
  Device device_;
  std::vector<Buffer> buffers_;
  std::unordered_map<int64_t, std::vector<int>> free_;  // by size
  int64_t total_ = 0;
  char* reserved_ = nullptr;
  int64_t reserved_bytes_ = 0;
};

}  // namespace osprey
