#pragma once
// What all tiles (AMX) need: their configuration, and what GCC's intrinsics leave out.

#include <stdint.h>

namespace osprey::cpu::OSPREY_ISA {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// GCC's tile intrinsics do not say what memory they read.
inline void memory_is_read(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

}  // namespace osprey::cpu::OSPREY_ISA
