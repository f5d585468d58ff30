#pragma once
// A tape with everything it stands on, for tests.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "framework/tape/tape.h"

namespace osprey::test {

struct TestBed {
  explicit TestBed(int threads = 2, int64_t arena_bytes = int64_t{256} << 20)
      : queue{.device = {}, .threads = threads},
        arena("activations", queue.device, arena_bytes),
        inputs("inputs", queue.device, arena_bytes),
        pool("activation gradients", queue.device),
        tape(queue, arena, pool) {
    arena.enable_guards();
    inputs.enable_guards();
    tape.set_mode(Tape::Mode::train);
  }

  Queue queue;
  Arena arena, inputs;
  Pool pool;
  ParamStore params;
  Tape tape;
};

using Values = std::vector<double>;

/// A tensor holding `values` rounded to `dtype`.
Tensor make(Arena& arena, const Shape& shape, DType dtype, const Values& values);
Tensor make_i32(Arena& arena, const Shape& shape, const std::vector<int>& values);
void write(const Tensor& t, const Values& values);
/// Elements as doubles, row by row.
Values read(const Tensor& t);
/// Standard normal values, scaled, rounded to `dtype`.
Values random_values(const std::string& name, int64_t count, DType dtype, double scale = 1.0);
/// max |a - b| / max |b|, with a floor on the denominator.
double relative_error(const Values& a, const Values& b);

}  // namespace osprey::test
