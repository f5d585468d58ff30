#pragma once
// Between kernels/cpu/isa/block_gemm.cpp, block_gemm_integer.cpp and block_gemm_bf16_tiles.cpp.

#include "kernels/cpu/isa/block_gemm.h"

namespace osprey::cpu::OSPREY_ISA {

void dot(const BlockGemm&);
int64_t dot_buffer_bytes(const BlockGemm&);
void few_rows(const BlockGemm&);
int64_t few_rows_buffer_bytes(const BlockGemm&);
void tiles(const BlockGemm&);
int64_t tiles_buffer_bytes(const BlockGemm&);
void bf16_tiles(const BlockGemm&);
int64_t bf16_tiles_buffer_bytes(const BlockGemm&);
// Up to 64 codes of 6 bits as bytes, then zeros; to 64 bytes. Requires has_bf16_tiles().
void spread_codes6(uint8_t* to, const uint8_t* codes, int64_t count);
void pack_panel(uint8_t* panel, const BlockLayout& b, int64_t k, const BlockColumn* columns, int64_t count);

}  // namespace osprey::cpu::OSPREY_ISA
