#pragma once
// The memory of the GPUs that the executor plays: one range of addresses that is only accessible while device
// work runs, so that host code which follows a device pointer crashes as it does beside a real GPU.

#include <cstddef>
#include <string>

namespace osprey::executor {

inline constexpr int max_devices = 4;
inline constexpr size_t device_bytes = size_t{64} << 30;

/// Fresh memory holds NaN in bf16, f32 and f64, and -1 in integers; so does shared memory at a block's start.
inline constexpr unsigned char poison_byte = 0xff;

/// Null when the device has not so much left. 4096-byte aligned, guarded behind its end.
void* allocate(int device, size_t bytes);
/// False when `p` is no allocation. Errors: throws when something has written behind its end.
bool release(void* p);
size_t used_bytes(int device);

/// The device whose live allocation holds all of [p, p + bytes), or -1.
int device_of(const void* p, size_t bytes);
/// Is this an address of the range, allocated or not?
bool in_device_range(const void* p);
/// Sets bytes; zeroing much memory only drops its pages. The memory must be accessible.
void fill(void* p, unsigned char value, size_t bytes);

/// Host memory that devices may access too.
void* allocate_pinned(size_t bytes);
bool release_pinned(void* p);
bool pinned(const void* p, size_t bytes);

/// While one exists, the memory of a device is accessible (to all host threads).
class DeviceAccess {
 public:
  explicit DeviceAccess(int device);
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;

 private:
  int device_;
};

/// Throws, naming `op`, when something has written behind the end of an allocation. The memory must be
/// accessible.
void check_guards(int device, const char* op);

}  // namespace osprey::executor
