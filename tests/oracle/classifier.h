#pragma once
#include <vector>

namespace osprey::oracle {

struct Classifier {
  double loss = 0;  // summed
  long tokens = 0;
  std::vector<double> token_losses, dx, dweight;  // gradients of scale * loss
};

/// Head and cross-entropy in plain double loops. x (N, C), weight (V, C); target -1 is not counted.
Classifier classifier(const std::vector<double>& x, const std::vector<double>& weight,
                      const std::vector<int>& targets, long width, double scale);

}  // namespace osprey::oracle
