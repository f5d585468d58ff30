#include "kernels/step_size.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void step_gradient(const Queue& queue, const StepGradient& a) {
  const char* where = "step_gradient";
  const auto floats = [&](const char* what, const Tensor& t) {
    require(t.dtype == DType::f32 || t.dtype == DType::bf16, where, "{} must be f32 or bf16, got {}", what,
            t);
  };
  floats("x", a.x);
  floats("dy", a.dy);
  floats("step", a.step);
  require_shape(where, "dy", a.dy, {a.x.rows(), a.x.cols()});
  require(a.step.shape == Shape{1} || a.step.shape == Shape{a.x.rows()}, where,
          "step must be (1) or ({}), got {}", a.x.rows(), a.step);
  require(a.dstep.tensor.dtype == DType::f32, where, "dstep must be f32, got {}", a.dstep.tensor);
  require_shape(where, "dstep", a.dstep.tensor, a.step.shape);
  require(a.element == Element::int4 || a.element == Element::int8, where,
          "steps are learnt of int4 and int8, whose codes count steps");
  dispatch(queue, a, cpu::step_gradient, cuda::step_gradient);
}

}  // namespace osprey::kernels
