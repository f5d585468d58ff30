#include "framework/finetune/adapters.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "framework/config/glob.h"
#include "framework/ops/adapter.h"
#include "kernels/core/check.h"
#include "kernels/magnitude.h"
#include "kernels/matmul.h"
#include "kernels/numerics/magnitude.h"

namespace osprey {

std::vector<AdapterNames> declare_adapters(const FinetuneSpec& spec, ParamStore& params) {
  const Glob targets(spec.targets);
  std::vector<Parameter*> weights;
  for (const auto& p : params.all()) {
    p->trainable = false;
    if (p->layer >= 0 && p->matrix() && targets.matches(p->name)) weights.push_back(p.get());
  }
  require(!weights.empty(), "finetune.targets", "\"{}\" matches no matrix of a layer", spec.targets);
  const double rank = static_cast<double>(spec.rank);
  const auto scale = static_cast<float>(spec.alpha / (spec.rank_stabilized ? std::sqrt(rank) : rank));
  std::vector<AdapterNames> all;
  for (Parameter* p : weights) {
    const int64_t out = p->shape[0], in = p->shape[1];
    require(spec.rank <= std::min(out, in), "finetune.rank",
            "{} is more than the smaller side of {} {}; lower it", spec.rank, p->name, p->shape);
    const std::string stem = p->name.substr(0, p->name.rfind('.'));
    AdapterNames names{.weight = p->name,
                       .a = stem + ".lora_a.weight",
                       .b = stem + ".lora_b.weight",
                       .magnitude = "",
                       .a_shape = {spec.rank, in},
                       .b_shape = {out, spec.rank},
                       .scale = scale};
    Parameter& a = params.add(names.a, p->layer, names.a_shape,
                              {Init::Kind::normal, 1 / std::sqrt(3 * static_cast<double>(in))});
    Parameter& b = params.add(names.b, p->layer, names.b_shape, {Init::Kind::constant, 0});
    p->adapter = std::make_shared<LowRankAdapter>(LowRankAdapter{&a, &b, scale});
    if (spec.method == FinetuneSpec::Method::dora) {
      names.magnitude = stem + ".lora_magnitude.weight";
      p->adapter->magnitude = &params.add(names.magnitude, p->layer, {out}, {Init::Kind::constant, 0});
    }
    all.push_back(std::move(names));
  }
  return all;
}

namespace {

struct Factors {
  std::string weight;  // whose they are
  std::vector<float> a, b, magnitude;
};

Tensor read_whole(const ReadParameter& read, const std::string& name, const Shape& shape,
                  std::vector<float>& into) {
  into.resize(static_cast<size_t>(shape.numel()));
  const Tensor t = make_tensor(into.data(), shape, DType::f32);
  read(name, 0, t);
  return t;
}

std::vector<float> norms(const Queue& queue, const Tensor& rows) {
  std::vector<float> values(static_cast<size_t>(rows.rows()));
  kernels::row_norms(queue, {.norms = make_tensor(values.data(), {rows.rows()}, DType::f32), .x = rows});
  return values;
}

}  // namespace

ReadParameter merged(const Queue& queue, ReadParameter read, std::vector<AdapterNames> adapters) {
  std::map<std::string, AdapterNames> by_weight;
  for (AdapterNames& names : adapters) by_weight[names.weight] = std::move(names);
  return [=, factors = Factors()](const std::string& name, int64_t begin, Tensor out) mutable {
    read(name, begin, out);
    const auto found = by_weight.find(name);
    if (found == by_weight.end()) return;
    const AdapterNames& names = found->second;
    const int64_t cols = names.a_shape[1], rows = out.numel() / cols;
    require(begin % cols == 0 && out.numel() % cols == 0, "merge", "{} is read in whole rows, got [{}, {})",
            name, begin, begin + out.numel());
    const bool lengths = !names.magnitude.empty();
    if (factors.weight != name) {
      read_whole(read, names.a, names.a_shape, factors.a);
      read_whole(read, names.b, names.b_shape, factors.b);
      if (lengths) read_whole(read, names.magnitude, {names.b_shape[0]}, factors.magnitude);
      factors.weight = name;
    }
    const Tensor a = make_tensor(factors.a.data(), names.a_shape, DType::f32);
    const Tensor b =
        make_tensor(factors.b.data(), names.b_shape, DType::f32).row_range(begin / cols, begin / cols + rows);
    const Tensor weight = out.view({rows, cols});
    std::vector<float> own, now;
    if (lengths) own = norms(queue, weight);
    kernels::matmul(queue, {.c = weight, .a = b, .b = a, .alpha = names.scale, .beta = 1.0f});
    if (!lengths) return;
    now = norms(queue, weight);
    for (int64_t r = 0; r < rows; ++r) {
      const auto i = static_cast<size_t>(r);
      const float length = own[i] + factors.magnitude[static_cast<size_t>(begin / cols + r)];
      for (int64_t c = 0; c < cols; ++c) weight.as<float>()[r * cols + c] *= length_factor(length, now[i]);
    }
  };
}

}  // namespace osprey
