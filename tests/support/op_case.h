#pragma once
// One op case yields the checks every op must pass:
//   1. parity with the double-precision oracle, in f32 and bf16
//   2. gradients against central differences of the oracle
//   3. a second backward into the same parameters doubles their gradients
//   4. frozen inputs leave no record and get no write
//   5. guard zones around every tensor stay untouched
//   6. two runs are equal bit for bit
//   7. the number of threads does not change a bit

#include <functional>
#include <string>
#include <vector>

#include "tests/support/test_bed.h"

namespace osprey::test {

struct OpInput {
  enum class Kind { activation, parameter };
  Shape shape;
  Kind kind = Kind::activation;
  double scale = 1.0;
  double offset = 0.0;  // added to every value: norm weights live around 1
};

struct OpCase {
  std::string name;
  std::vector<OpInput> inputs;
  /// Builds the op on the tape from the inputs, in order.
  std::function<Var(Tape&, const std::vector<Var>&)> build;
  /// The same in plain double loops: values of all inputs in, values of the output out.
  std::function<Values(const std::vector<Values>&)> oracle;
  double f32_tolerance = 2e-5;  // of the largest output or gradient
  double bf16_tolerance = 1.5e-2;
  std::vector<DType> dtypes = {DType::f32, DType::bf16};
};

void check_op(const OpCase& op);

}  // namespace osprey::test
