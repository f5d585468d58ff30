#pragma once
// A tape with everything it stands on, for tests.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "framework/memory/staging.h"
#include "framework/tape/tape.h"

namespace osprey::test {

/// What OSPREY_TEST_DEVICE says: cpu (unless set) or cuda. Ends the program as skipped where there is no GPU.
Device test_device();
/// A queue on that device. The stream is one for the whole process.
Queue test_queue(int threads = 2);
/// A queue on `device`, to reach tensors that lie there.
Queue queue_of(Device device, int threads = 2);
/// Room for the tensors of one small test: address space on the CPU, real memory on a GPU.
inline int64_t test_arena_bytes() {
  return test_device().kind == DeviceKind::cpu ? int64_t{256} << 20 : int64_t{8} << 20;
}

struct TestBed {
  explicit TestBed(int threads = 2, int64_t arena_bytes = test_arena_bytes())
      : queue(test_queue(threads)),
        arena("activations", queue.device, arena_bytes),
        inputs("inputs", queue.device, arena_bytes),
        pool("activation gradients", queue.device),
        tape(queue, arena, pool) {
    arena.enable_guards(queue);
    inputs.enable_guards(queue);
    tape.set_mode(Tape::Mode::train);
  }

  /// f64 zeros: where losses and other sums of a test go.
  Tensor zeros(int64_t count) {
    const Tensor t = inputs.alloc({count}, DType::f64);
    kernels::fill_bytes(queue, t, 0);
    return t;
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
