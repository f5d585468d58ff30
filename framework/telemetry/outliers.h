#pragma once
// How heavy the tails of one activation tensor are. Rows are tokens, columns are channels.
//
// The numbers of different papers go by the same name and differ; here each has one definition:
//   osp_kurtosis      per token mean(x^4) / std^4 - 3, with the RAW fourth moment, the centred unbiased
//                     standard deviation, clamped at 0; mean over tokens
//   kurtosis          per token m4 / m2^2 - 3, central and biased moments; mean over tokens
//   pooled_kurtosis   m4 / m2^2 - 3 of all elements of the tensor together
//   max_abs           max |x|
//   max_to_mean       max |x| / mean |x| over the tensor
//   max_to_median     per token max |x| / median |x|; mean over tokens (the median of an even count is
//                     the mean of the middle two)
// Reference: "osp_kurtosis" follows the evaluation script of Outlier-Safe Pre-Training; max_to_median is
// the MMR of the massive-activations literature.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey {

/// The figures of one tensor; a figure that no token defines (all constant, all zero) is absent.
struct OutlierMetrics {
  int64_t tokens = 0;            // all tokens seen
  int64_t nonfinite_tokens = 0;  // tokens with a NaN or an infinity; in none of the figures below
  std::optional<double> osp_kurtosis, kurtosis, pooled_kurtosis;
  std::optional<double> max_abs, max_to_mean, max_to_median;
};

/// What must be added up to form OutlierMetrics over micro batches and ranks.
/// Numerics: double throughout; higher moments are central and merged pairwise, never raw power sums.
struct OutlierSums {
  int64_t tokens = 0;
  int64_t nonfinite_tokens = 0;
  int64_t spread_tokens = 0;  // tokens whose channels differ: the kurtosis exists
  double osp_kurtosis = 0;    // sums over spread tokens
  double kurtosis = 0;
  int64_t median_tokens = 0;  // tokens whose median |x| is not 0
  double max_to_median = 0;   // sum over median tokens
  double abs_sum = 0;
  double abs_max = 0;
  double count = 0, mean = 0, m2 = 0, m3 = 0, m4 = 0;  // all elements: sums of central powers

  /// Adds `other`. The order of merging decides the last bits, so merge in a fixed order.
  void merge(const OutlierSums& other);
  OutlierMetrics metrics() const;

  /// One line of text that reads back to the same bits, for gathering over ranks.
  std::string pack() const;
  /// Errors: throws unless `text` came from pack().
  static OutlierSums unpack(std::string_view text);
};

/// Sums of one tensor.
/// Shapes: any view whose outer dimensions collapse to (rows, cols); bf16 or f32 on the CPU.
/// Numerics: reduced over fixed chunks of rows in order, so the bits do not depend on queue.threads.
/// Errors: throws on other dtypes and devices; a `meta` queue gives zeros.
OutlierSums measure_outliers(const Queue& queue, const Tensor& x);

}  // namespace osprey
