#include "framework/ops/calibration.h"

#include "kernels/outlier_pattern.h"

namespace osprey {

const QuantScheme* scheme_of(std::span<Parameter* const> weights) {
  const QuantScheme* first = weights[0]->scheme;
  for (const Parameter* p : weights)
    require(first ? p->scheme && p->scheme->spec == first->spec && p->scheme->calibrates == first->calibrates
                  : !p->scheme,
            "quant", "{} and {} have one input, but belong to different groups; give them one",
            weights[0]->name, p->name);
  return first;
}

void count_patterns(Tape& t, const QuantScheme& scheme, const Tensor& x, std::span<const Tensor> weights,
                    const Tensor& dy) {
  const auto vote = [&](int64_t tensor, std::span<const Tensor> parts) {
    int64_t rows = 0;
    for (const Tensor& part : parts) rows += part.rows();
    const Tensor by_row = t.temp({rows}, DType::f32), by_column = t.temp({parts[0].cols()}, DType::f32);
    kernels::line_squares(t.queue(), {.xs = parts, .rows = by_row, .columns = by_column});
    kernels::count_pattern(t.queue(), {.counts = scheme.votes.row_range(tensor, tensor + 1),
                                       .rows = by_row,
                                       .columns = by_column,
                                       .ratio = scheme.spec->outlier_ratio});
  };
  vote(0, {&x, 1});
  vote(1, weights);
  vote(2, {&dy, 1});
}

}  // namespace osprey
