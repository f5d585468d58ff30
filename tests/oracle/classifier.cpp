#include "tests/oracle/classifier.h"

#include <algorithm>
#include <cmath>

namespace osprey::oracle {

Classifier classifier(const std::vector<double>& x, const std::vector<double>& weight,
                      const std::vector<int>& targets, long width, double scale) {
  const size_t c = static_cast<size_t>(width), v = weight.size() / c;
  Classifier r;
  r.token_losses.assign(targets.size(), 0);
  r.dx.assign(x.size(), 0);
  r.dweight.assign(weight.size(), 0);
  for (size_t n = 0; n < targets.size(); ++n) {
    if (targets[n] < 0) continue;
    std::vector<double> logits(v, 0);
    for (size_t j = 0; j < v; ++j)
      for (size_t i = 0; i < c; ++i) logits[j] += x[n * c + i] * weight[j * c + i];
    const double top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (double l : logits) sum += std::exp(l - top);
    r.token_losses[n] = top + std::log(sum) - logits[static_cast<size_t>(targets[n])];
    r.loss += r.token_losses[n];
    ++r.tokens;
    for (size_t j = 0; j < v; ++j) {
      const double d = scale * (std::exp(logits[j] - top) / sum - (static_cast<int>(j) == targets[n]));
      for (size_t i = 0; i < c; ++i) {
        r.dx[n * c + i] += d * weight[j * c + i];
        r.dweight[j * c + i] += d * x[n * c + i];
      }
    }
  }
  return r;
}

}  // namespace osprey::oracle
