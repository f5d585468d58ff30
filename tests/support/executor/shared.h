#pragma once
// The shared memory of the block that runs, at its exact size.

#include <cstddef>
#include <string>

namespace osprey::executor {

class SharedMemory {
 public:
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  /// `bytes` of poison from now on, with guards around.
  void start(size_t bytes);
  void* data() const { return data_; }
  bool holds(const void* p, size_t bytes) const;
  /// What a block has done to the guards; empty when nothing. AddressSanitizer reports the access itself.
  std::string broken() const;

  static constexpr size_t most = 227 * 1024;

 private:
  static constexpr size_t guard = 1024;
  char* all_;
  char* data_;
  size_t bytes_ = 0;
};

}  // namespace osprey::executor
