#include "models/layers/norm.h"

#include "framework/ops/pointwise.h"

namespace osprey {

Norm Norm::declare(ParamStore& params, const std::string& name, int layer, NormKind kind, int64_t width,
                   double eps) {
  Norm n;
  n.kind = kind;
  n.eps = static_cast<float>(eps);
  n.weight = &params.add(name + ".weight", layer, {kind == NormKind::ssnorm ? 1 : width},
                         {Init::Kind::constant, 1.0});
  if (kind == NormKind::layernorm)
    n.bias = &params.add(name + ".bias", layer, {width}, {Init::Kind::constant, 0.0});
  return n;
}

Var Norm::operator()(Tape& t, Var x) const {
  if (kind == NormKind::layernorm) return layernorm(t, x, t.leaf(*weight), t.leaf(*bias), eps);
  return rmsnorm(t, x, t.leaf(*weight), eps);
}

NormedSum Norm::of_sum(Tape& t, Var a, Var b) const {
  if (kind != NormKind::layernorm) return add_rmsnorm(t, a, b, t.leaf(*weight), eps);
  const Var sum = add(t, a, b);
  return {sum, (*this)(t, sum)};
}

}  // namespace osprey
