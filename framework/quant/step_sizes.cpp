#include "framework/quant/step_sizes.h"

#include <cmath>
#include <map>
#include <span>

#include "framework/tape/tape.h"
#include "kernels/device.h"
#include "kernels/numerics/step_size.h"

namespace osprey {

namespace {

/// Adds up |x| of a row after the other, in the order of the elements.
class Magnitudes {
 public:
  struct Sum {
    double sum = 0, count = 0;
  };
  /// Of each row of x, contiguous (N, K).
  template <class Use>
  void each_row(const Queue& queue, const Tensor& x, const Use& use) {
    bytes_.resize(static_cast<size_t>(x.bytes()));
    kernels::download(queue, bytes_.data(), x);
    const Tensor host = make_tensor(bytes_.data(), x.shape, x.dtype);
    for (int64_t r = 0; r < x.rows(); ++r) {
      const Tensor row = host.row_range(r, r + 1);
      use(r, Sum{x.dtype == DType::bf16 ? sum_of<bf16>(row) : sum_of<float>(row),
                 static_cast<double>(x.cols())});
    }
  }

 private:
  static double number(bf16 v) { return static_cast<double>(to_float(v)); }
  static double number(float v) { return static_cast<double>(v); }
  template <class T>
  static double sum_of(const Tensor& row) {
    double sum = 0;
    for (int64_t i = 0; i < row.numel(); ++i) sum += std::abs(number(row.as<T>()[i]));
    return sum;
  }
  std::vector<char> bytes_;
};

/// Looks at what linear layers read, and leaves it as it is.
class InputMagnitudes final : public LinearInput {
 public:
  Tensor linear_input(Tape& t, const std::string& weight, const Tensor& x) override {
    if (const auto at = sums.find(weight); at != sums.end())
      magnitudes_.each_row(t.queue(), x, [&](int64_t, const Magnitudes::Sum& row) {
        at->second.sum += row.sum;
        at->second.count += row.count;
      });
    return x;
  }
  std::map<std::string, Magnitudes::Sum> sums;  // by the first weight that reads the input

 private:
  Magnitudes magnitudes_;
};

/// The initial steps of a weight: of each row, or one.
std::vector<float> steps_of_weight(const Queue& queue, const Parameter& p, Element e) {
  const bool by_row = p.weight_step->shape[0] == p.shape[0];
  std::vector<Magnitudes::Sum> sums(static_cast<size_t>(p.weight_step->shape[0]));
  Magnitudes().each_row(queue, p.value, [&](int64_t r, const Magnitudes::Sum& row) {
    Magnitudes::Sum& s = sums[static_cast<size_t>(by_row ? r : 0)];
    s.sum += row.sum;
    s.count += row.count;
  });
  std::vector<float> steps;
  for (const Magnitudes::Sum& s : sums) steps.push_back(static_cast<float>(initial_step(e, s.sum / s.count)));
  return steps;
}

}  // namespace

StepNames::StepNames(const std::string& weight) {
  const std::string tail = "weight";
  require(weight.ends_with(tail), "quant", "{} is the name of no weight", weight);
  of_weight = weight + "_step";
  of_input = weight.substr(0, weight.size() - tail.size()) + "input_step";
}

bool is_step_size(const std::string& parameter) {
  return parameter.ends_with(".weight_step") || parameter.ends_with(".input_step");
}

bool learns_step(const std::optional<QuantOperandSpec>& operand) {
  return operand && operand->scale == ScaleRule::lsq;
}

void declare_steps(ParamStore& params, Parameter& weight, const QuantGroupSpec& group) {
  const Init one{Init::Kind::constant, 1};
  if (learns_step(group.weights) && !weight.stored_format) {
    const bool by_row = group.weights->block_format().granularity == Granularity::row;
    weight.weight_step =
        &params.add(StepNames(weight.name).of_weight, weight.layer, {by_row ? weight.shape[0] : 1}, one);
  }
  if (learns_step(group.activations) && !weight.first_of_input)
    weight.input_step = &params.add(StepNames(weight.name).of_input, weight.layer, {1}, one);
}

void QuantSchemes::begin_steps(Trainer& trainer, int64_t step) {
  std::vector<Member*> joining;
  for (Member& m : members_)
    if (m.begin == step && (m.parameter->weight_step || m.parameter->input_step)) joining.push_back(&m);
  if (joining.empty()) return;
  const TrainerParts& parts = trainer.parts();
  activate(step);
  // What they are to quantize is what they compute with unquantized: also those that share an input, or join
  // beside them, and learn no step themselves.
  for (const Member& m : members_)
    if (m.begin == step) m.parameter->scheme = nullptr;
  InputMagnitudes inputs;
  for (const Member* m : joining)
    if (m->parameter->input_step) inputs.sums[m->parameter->name] = {};
  if (!inputs.sums.empty()) {
    parts.tape->set_linear_input(&inputs);
    trainer.look_at_batch(step);
    parts.tape->set_linear_input(nullptr);
    std::vector<double> all;
    for (const auto& [name, s] : inputs.sums) all.insert(all.end(), {s.sum, s.count});
    parts.world->sum(all);
    size_t at = 0;
    for (auto& [name, s] : inputs.sums) s = {all[at], all[at + 1]}, at += 2;
  }
  for (const Member* m : joining) {
    const Parameter& p = *m->parameter;
    const QuantGroupSpec& group = *m->scheme->spec;
    if (p.weight_step)
      parts.updater->assign(*p.weight_step,
                            steps_of_weight(parts.queue, p, group.weights->block_format().element));
    if (!p.input_step) continue;
    const Magnitudes::Sum& s = inputs.sums.at(p.name);
    const float first =
        static_cast<float>(initial_step(group.activations->block_format().element, s.sum / s.count));
    parts.updater->assign(*p.input_step, {&first, 1});
  }
  parts.updater->round_values();
  parts.reducer->gather_all();
  parts.reducer->wait_all();
}

bool QuantSchemes::reads_state(int64_t finished) const {
  return std::any_of(members_.begin(), members_.end(), [&](const Member& m) {
    return m.begin == finished && (m.parameter->weight_step || m.parameter->input_step);
  });
}

}  // namespace osprey
