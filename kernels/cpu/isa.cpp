#include "kernels/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "kernels/core/check.h"

namespace osprey::cpu {

static Isa best_isa() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
    return Isa::avx512_bf16;
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

static Isa choose() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("OSPREY_ISA");
  if (!wanted || !*wanted) return best;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
    if (std::string_view(wanted) != name(isa)) continue;
    require(isa <= best, "isa", "OSPREY_ISA={} but this CPU has {} at best", wanted, name(best));
    return isa;
  }
  fail("isa", "OSPREY_ISA={} is not one of portable, avx2, avx512, avx512_bf16", wanted);
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

bool has_bf16_instructions() { return active_isa() == Isa::avx512_bf16; }

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}

// Linux gives the registers of tiles to processes that ask for them: Documentation/arch/x86/xstate.rst.
static bool tiles_permitted() {
#ifdef SYS_arch_prctl
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

bool has_int8_tiles() {
  static const bool able = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 && (c >> 1 & 1) && tiles_permitted();
  }();
  return able;
}

// Both kinds of tiles want AVX512-VBMI beside them: it looks codes up.
bool has_bf16_tiles() {
  static const bool able = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) && (c >> 1 & 1) &&
           tiles_permitted();
  }();
  return able;
}

}  // namespace osprey::cpu
