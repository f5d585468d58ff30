#include "tests/support/op_case.h"

#include <gtest/gtest.h>

#include "kernels/core/random.h"

namespace osprey::test {

namespace {

struct Result {
  Values output;
  std::vector<Values> gradients;  // empty for frozen inputs
  size_t backward_writes = 0;
};

std::vector<Values> input_values(const OpCase& op, DType dtype) {
  std::vector<Values> all;
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    const OpInput& in = op.inputs[i];
    Values v = random_values(op.name + std::to_string(i), in.shape.numel(), DType::f32, in.scale);
    for (double& x : v) {
      x += in.offset;
      x = static_cast<double>(dtype == DType::bf16 ? to_float(to_bf16(static_cast<float>(x)))
                                                   : static_cast<float>(x));
    }
    all.push_back(std::move(v));
  }
  return all;
}

/// Forward, then `backwards` times the backward of L = sum(output * weights).
Result run(const OpCase& op, DType dtype, const std::vector<Values>& values, const std::vector<char>& frozen,
           int threads, int backwards) {
  TestBed bed(threads);
  Result result;
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    const OpInput& in = op.inputs[i];
    if (in.kind == OpInput::Kind::parameter)
      bed.params.add("p" + std::to_string(i), 0, in.shape, {}).trainable = !frozen[i];
    tensors.push_back(make(bed.inputs, in.shape, dtype, values[i]));
  }
  bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
  bed.params.begin_step();
  for (int pass = 0; pass < backwards; ++pass) {
    std::vector<Var> vars;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      if (op.inputs[i].kind == OpInput::Kind::parameter) {
        Parameter& p = bed.params.at("p" + std::to_string(i));
        write(p.value, values[i]);
        vars.push_back(bed.tape.leaf(p));
      } else {
        vars.push_back(frozen[i] ? bed.tape.input(tensors[i]) : bed.tape.source(tensors[i]));
      }
    }
    const Var out = op.build(bed.tape, vars);
    const Tensor y = bed.tape.value(out);
    result.output = read(y);
    const bool any = std::find(frozen.begin(), frozen.end(), 0) != frozen.end();
    EXPECT_EQ(bed.tape.needs_grad(out), any) << op.name << ": needs a gradient iff an input does";
    if (any) {
      const Values weights = random_values(op.name + "dy", y.numel(), dtype);
      bed.tape.backward_from(out, make(bed.inputs, y.shape, y.dtype, weights));
    }
    result.gradients.assign(op.inputs.size(), {});
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      if (op.inputs[i].kind == OpInput::Kind::parameter) {
        Parameter& p = bed.params.at("p" + std::to_string(i));
        EXPECT_EQ(p.grad_written, !frozen[i]) << op.name << ": input " << i;
        if (p.grad_written) result.gradients[i] = read(p.grad);
      } else if (!frozen[i]) {
        EXPECT_TRUE(bed.tape.gradient_of(vars[i]).defined())
            << op.name << ": no gradient reached input " << i;
        result.gradients[i] = read(bed.tape.gradient_of(vars[i]));
      }
    }
    bed.tape.reset();
  }
  EXPECT_NO_THROW(bed.arena.check_guards()) << op.name;
  EXPECT_NO_THROW(bed.inputs.check_guards()) << op.name;
  return result;
}

double loss(const OpCase& op, const std::vector<Values>& values, const Values& weights) {
  const Values y = op.oracle(values);
  double sum = 0;
  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * weights[i];
  return sum;
}

/// Central differences of the oracle at up to `probes` elements of every input.
void check_gradients(const OpCase& op, DType dtype, const std::vector<Values>& values, const Result& result,
                     double tolerance) {
  const Values weights = random_values(op.name + "dy", static_cast<int64_t>(result.output.size()), dtype);
  constexpr uint64_t probes = 24;
  for (size_t i = 0; i < values.size(); ++i) {
    std::vector<Values> moved = values;
    Values expected, got;
    for (uint64_t k = 0; k < probes; ++k) {
      const size_t e = k < values[i].size() && values[i].size() <= probes
                           ? static_cast<size_t>(k)
                           : static_cast<size_t>(random_u64(3, i, k) % values[i].size());
      const double h = 1e-4;
      moved[i][e] = values[i][e] + h;
      const double up = loss(op, moved, weights);
      moved[i][e] = values[i][e] - h;
      const double down = loss(op, moved, weights);
      moved[i][e] = values[i][e];
      expected.push_back((up - down) / (2 * h));
      got.push_back(result.gradients[i][e]);
    }
    EXPECT_LT(relative_error(got, expected), tolerance)
        << op.name << " " << name(dtype) << ": gradient of input " << i;
  }
}

void check_frozen(const OpCase& op, DType dtype, const std::vector<Values>& values, const Result& all) {
  for (size_t i = 0; i <= op.inputs.size(); ++i) {  // each one alone, then all
    std::vector<char> frozen(op.inputs.size(), i == op.inputs.size());
    if (i < op.inputs.size()) frozen[i] = 1;
    const Result r = run(op, dtype, values, frozen, 2, 1);
    for (size_t j = 0; j < op.inputs.size(); ++j)
      if (!frozen[j]) {
        EXPECT_EQ(r.gradients[j], all.gradients[j]) << op.name << ": freezing " << i << " changed " << j;
      }
  }
}

}  // namespace

void check_op(const OpCase& op) {
  for (DType dtype : op.dtypes) {
    SCOPED_TRACE(op.name + " " + name(dtype));
    const double tolerance = dtype == DType::bf16 ? op.bf16_tolerance : op.f32_tolerance;
    const std::vector<Values> values = input_values(op, dtype);
    const std::vector<char> none(op.inputs.size(), 0);
    const Result once = run(op, dtype, values, none, 2, 1);
    EXPECT_LT(relative_error(once.output, op.oracle(values)), tolerance) << op.name << ": forward";
    check_gradients(op, dtype, values, once, 2 * tolerance + 1e-6);
    const Result again = run(op, dtype, values, none, 2, 1);
    EXPECT_EQ(once.output, again.output) << "two runs differ";
    EXPECT_EQ(once.gradients, again.gradients) << "two runs differ";
    const Result serial = run(op, dtype, values, none, 1, 1);
    EXPECT_EQ(once.output, serial.output) << "threads change the output";
    EXPECT_EQ(once.gradients, serial.gradients) << "threads change the gradients";
    const Result twice = run(op, dtype, values, none, 2, 2);
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      if (op.inputs[i].kind != OpInput::Kind::parameter) continue;
      Values doubled = once.gradients[i];
      for (double& g : doubled) g *= 2;
      EXPECT_LT(relative_error(twice.gradients[i], doubled), 1e-6) << "accumulating twice, input " << i;
    }
    check_frozen(op, dtype, values, once);
  }
}

}  // namespace osprey::test
