#pragma once
// Between kernels/cpu/isa/block_gemm.cpp and block_gemm_integer.cpp.

#include "kernels/cpu/isa/block_gemm.h"

namespace osprey::cpu::OSPREY_ISA {

void dot(const BlockGemm&);
int64_t dot_buffer_bytes(const BlockGemm&);
void few_rows(const BlockGemm&);
int64_t few_rows_buffer_bytes(const BlockGemm&);
void tiles(const BlockGemm&);
int64_t tiles_buffer_bytes(const BlockGemm&);
void pack_panel(uint8_t* panel, const BlockLayout& b, int64_t k, const BlockColumn* columns, int64_t count);

}  // namespace osprey::cpu::OSPREY_ISA
