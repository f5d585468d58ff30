#pragma once
// Run-time choice of instruction set.
//
// Every file in kernels/cpu/isa/ is compiled once per set, with OSPREY_ISA defined to its name, and
// puts its functions into the namespace of that name. Such a file may include only
// kernels/numerics/*, its own header and C headers: an inline function shared with other files could
// be emitted with AVX-512 instructions and then be picked by the linker for all machines.
// Pattern: kernels/cpu/isa/norm.h.

namespace osprey::cpu {

enum class Isa { portable, avx2, avx512, avx512_bf16 };

/// The best set this CPU has, or the lower one named by the environment variable OSPREY_ISA.
/// Errors: throws if OSPREY_ISA names an unknown set or one this CPU lacks.
Isa active_isa();
const char* name(Isa isa);
/// Does the CPU have bf16 dot products (AVX512-BF16 or AMX)? Otherwise bf16 GEMMs run in fp32.
bool has_bf16_instructions();
/// Does it multiply bf16 tiles (AMX)?
bool has_amx();
/// Does it multiply int8 tiles, and does the system let this process do so? Asks the system the first time.
bool has_int8_tiles();
/// The same of bf16 tiles.
bool has_bf16_tiles();

template <class Table>
const Table& select(const Table& portable, const Table& avx2, const Table& avx512, const Table& avx512_bf16) {
  switch (active_isa()) {
    case Isa::portable:
      return portable;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512_bf16;
  }
  return portable;
}

}  // namespace osprey::cpu

/// Declares `Type variable` in the four namespaces and `const Type& variable()` that selects.
#define OSPREY_ISA_TABLE(Type, variable)                                                        \
  namespace portable {                                                                          \
  extern const Type variable;                                                                   \
  }                                                                                             \
  namespace avx2 {                                                                              \
  extern const Type variable;                                                                   \
  }                                                                                             \
  namespace avx512 {                                                                            \
  extern const Type variable;                                                                   \
  }                                                                                             \
  namespace avx512_bf16 {                                                                       \
  extern const Type variable;                                                                   \
  }                                                                                             \
  inline const Type& variable() {                                                               \
    return select(portable::variable, avx2::variable, avx512::variable, avx512_bf16::variable); \
  }
