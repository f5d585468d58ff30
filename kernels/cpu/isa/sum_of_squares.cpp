#include "kernels/cpu/isa/sum_of_squares.h"

namespace osprey::cpu::OSPREY_ISA {

static double sum(const float* x, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

extern const SumOfSquaresTable sum_of_squares_table;
const SumOfSquaresTable sum_of_squares_table = {sum};

}  // namespace osprey::cpu::OSPREY_ISA
