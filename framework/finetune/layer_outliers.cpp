#include "framework/finetune/layer_outliers.h"

#include <algorithm>
#include <cmath>
#include <deque>

#include "framework/memory/staging.h"
#include "kernels/core/check.h"

namespace osprey {

namespace {

double element(const Tensor& t, int64_t i) {
  return static_cast<double>(t.dtype == DType::bf16 ? to_float(t.as<bf16>()[i]) : t.as<float>()[i]);
}

/// Calls use(|w| |x|) for every element of a matrix.
template <class Use>
void each_product(const Tensor& weight, const std::vector<double>& norms, const Use& use) {
  const int64_t cols = weight.cols();
  for (int64_t i = 0; i < weight.rows(); ++i)
    for (int64_t j = 0; j < cols; ++j)
      use(std::abs(element(weight, i * cols + j)) * norms[static_cast<size_t>(j)]);
}

struct Block {
  std::vector<const Parameter*> weights;
  std::vector<std::vector<double>> norms;  // of each weight's input, by column
};

}  // namespace

Tensor LayerOutliers::linear_input(Tape& t, const std::string& weight, const Tensor& x) {
  if (t.current_layer() < 0) return x;
  const int64_t cols = x.cols();
  std::vector<double>& sums = squares_[weight];
  sums.resize(static_cast<size_t>(cols));
  const HostCopy copy(t.queue(), x);
  parallel_for(t.queue(), cols, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < x.rows(); ++i)
      for (int64_t j = begin; j < end; ++j) {
        const double v = element(copy.tensor(), i * cols + j);
        sums[static_cast<size_t>(j)] += v * v;
      }
  });
  return x;
}

std::vector<double> LayerOutliers::scores(const ParamStore& params, double threshold) const {
  std::vector<Block> blocks;
  for (const auto& p : params.all()) {
    if (p->layer < 0 || !p->matrix()) continue;
    require(!p->stored_format, "layer scores", "{} is packed; score the checkpoint that it was made of",
            p->name);
    const auto seen = squares_.find((p->first_of_input ? p->first_of_input : p.get())->name);
    require(seen != squares_.end(), "layer scores", "nothing was read by {}", p->name);
    blocks.resize(std::max(blocks.size(), static_cast<size_t>(p->layer) + 1));
    Block& block = blocks[static_cast<size_t>(p->layer)];
    block.weights.push_back(p.get());
    block.norms.emplace_back();
    for (const double s : seen->second) block.norms.back().push_back(std::sqrt(s));
  }
  std::vector<double> all;
  for (const Block& block : blocks) {
    std::deque<HostCopy> weights;
    for (const Parameter* p : block.weights) weights.emplace_back(tape_.queue(), p->value);
    double sum = 0;
    int64_t count = 0, above = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      each_product(weights[i].tensor(), block.norms[i], [&](double a) { sum += a; });
      count += weights[i].tensor().numel();
    }
    const double bound = threshold * sum / static_cast<double>(count);
    for (size_t i = 0; i < weights.size(); ++i)
      each_product(weights[i].tensor(), block.norms[i], [&](double a) { above += a > bound; });
    all.push_back(100.0 * static_cast<double>(above) / static_cast<double>(count));
  }
  return all;
}

}  // namespace osprey
