#pragma once
// What CUDA gives device code without an include, as functions that run in a fiber: see executor.h.

#include <math.h>

#include <cstring>
#include <source_location>

#include "tests/support/executor/executor.h"
#include "tests/support/executor/types.h"

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;

inline void __syncthreads(std::source_location at = std::source_location::current()) {
  osprey::executor::wait_for_block(at);
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location at = std::source_location::current()) {
  osprey::executor::wait_for_lanes(mask, "__syncwarp", at, nullptr, [](void* const(&)[32], unsigned) {});
}

namespace osprey::executor {

/// The types that CUDA shuffles.
template <class T>
concept Shuffled = std::is_arithmetic_v<T> &&(sizeof(T) == 4 || sizeof(T) == 8);

/// Every lane receives the value that lane `from` of its warp came with; poison when that lane is not here.
template <Shuffled T>
T shuffle(unsigned mask, T value, int from, const char* what, std::source_location at) {
  struct Operand {
    T value, received;
    int from;
  } mine{value, {}, from};
  wait_for_lanes(mask, what, at, &mine, [](void* const(&operands)[32], unsigned here) {
    for (unsigned left = here; left != 0; left &= left - 1) {
      auto* to = static_cast<Operand*>(operands[__builtin_ctz(left)]);
      if (here >> to->from & 1)
        to->received = static_cast<Operand*>(operands[to->from])->value;
      else
        memset(&to->received, 0xff, sizeof(T));
    }
  });
  return mine.received;
}

/// The lanes of `mask` whose predicate is not 0.
inline unsigned vote(unsigned mask, int predicate, const char* what, std::source_location at) {
  struct Operand {
    bool yes;
    unsigned all;
  } mine{predicate != 0, 0};
  wait_for_lanes(mask, what, at, &mine, [](void* const(&operands)[32], unsigned here) {
    unsigned all = 0;
    for (unsigned left = here; left != 0; left &= left - 1)
      if (static_cast<Operand*>(operands[__builtin_ctz(left)])->yes) all |= left & -left;
    for (unsigned left = here; left != 0; left &= left - 1)
      static_cast<Operand*>(operands[__builtin_ctz(left)])->all = all;
  });
  return mine.all;
}

}  // namespace osprey::executor

template <osprey::executor::Shuffled T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              std::source_location at = std::source_location::current()) {
  const int first = osprey::executor::lane() & ~(width - 1);
  return osprey::executor::shuffle(mask, value, first | (from & (width - 1)), "__shfl_sync", at);
}

template <osprey::executor::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  std::source_location at = std::source_location::current()) {
  const int lane = osprey::executor::lane(), from = lane ^ bits, end = (lane & ~(width - 1)) + width;
  return osprey::executor::shuffle(mask, value, from < end ? from : lane, "__shfl_xor_sync", at);
}

template <osprey::executor::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   std::source_location at = std::source_location::current()) {
  const int lane = osprey::executor::lane(), from = lane + static_cast<int>(by),
            end = (lane & ~(width - 1)) + width;
  return osprey::executor::shuffle(mask, value, from < end ? from : lane, "__shfl_down_sync", at);
}

template <osprey::executor::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 std::source_location at = std::source_location::current()) {
  const int lane = osprey::executor::lane(), from = lane - static_cast<int>(by), first = lane & ~(width - 1);
  return osprey::executor::shuffle(mask, value, from >= first ? from : lane, "__shfl_up_sync", at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location at = std::source_location::current()) {
  return osprey::executor::vote(mask, predicate, "__ballot_sync", at);
}
inline int __any_sync(unsigned mask, int predicate,
                      std::source_location at = std::source_location::current()) {
  return osprey::executor::vote(mask, predicate, "__any_sync", at) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      std::source_location at = std::source_location::current()) {
  return osprey::executor::vote(mask, predicate, "__all_sync", at) == mask;
}

[[noreturn]] inline void __trap() { osprey::executor::fail_thread("trapped"); }

// Threads of a block take turns only where they wait, so plain code is atomic among them.
namespace osprey::executor {
template <class T>
T exchange(T* p, T v) {
  const T old = *p;
  *p = v;
  return old;
}
}  // namespace osprey::executor

inline int atomicAdd(int* p, int v) { return osprey::executor::exchange(p, static_cast<int>(*p + v)); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return osprey::executor::exchange(p, *p + v); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return osprey::executor::exchange(p, *p + v);
}
inline float atomicAdd(float* p, float v) { return osprey::executor::exchange(p, *p + v); }
inline int atomicMax(int* p, int v) { return osprey::executor::exchange(p, *p < v ? v : *p); }
inline unsigned atomicMax(unsigned* p, unsigned v) { return osprey::executor::exchange(p, *p < v ? v : *p); }
inline void __threadfence() {}

inline float __uint_as_float(unsigned v) {
  float f;
  memcpy(&f, &v, 4);
  return f;
}
inline unsigned __float_as_uint(float v) {
  unsigned u;
  memcpy(&u, &v, 4);
  return u;
}
inline float __int_as_float(int v) { return __uint_as_float(static_cast<unsigned>(v)); }
inline int __float_as_int(float v) { return static_cast<int>(__float_as_uint(v)); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }

// The host's are templates in std.
inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline long max(long a, long b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
