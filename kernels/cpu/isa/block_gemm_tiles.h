#pragma once
// The parts of the engine of tiles that multiply() in kernels/cpu/isa/block_gemm_integer.cpp calls; AMX only.

#include "kernels/cpu/isa/block_gemm_plan.h"

namespace osprey::cpu::avx512_bf16 {

// Integers of 4-bit codes, shifted left by bits 4 and 5 of the index.
__m512i shifted_values(Element e);

// Sets up tiles of `depth` k; release() gives them back.
void configure(int64_t depth);
void release();
// Rows [begin, begin + count) of a, one group, where Plan::fold says so; unpack_group() otherwise.
void fold_group(const BlockGemm& g, const Plan& p, const Memory& m, int64_t index, int64_t begin,
                int64_t count, __m512i values);
// k [begin, begin + span) of two panels likewise.
void fold_panels(const BlockGemm& g, const Plan& p, const Memory& m, const uint8_t* const* panels,
                 int64_t begin, __m512i values);
// Adds the products over k [begin, begin + span) of all groups with two panels to sums[row][32].
void tile_span(const BlockGemm& g, const Plan& p, const Memory& m, float* sums, int64_t groups,
               int64_t begin);

}  // namespace osprey::cpu::avx512_bf16
