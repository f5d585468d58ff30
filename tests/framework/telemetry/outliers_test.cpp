#include "framework/telemetry/outliers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

std::vector<float> normal_values(int64_t n, double scale, double shift) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    v[static_cast<size_t>(i)] =
        static_cast<float>(random_normal(7, 11, static_cast<uint64_t>(i)) * scale + shift);
  return v;
}

Tensor rows_of(std::vector<float>& v, int64_t cols) {
  return make_tensor(v.data(), {static_cast<int64_t>(v.size()) / cols, cols}, DType::f32);
}

/// The definitions of outliers.h, written down once more in the plainest way.
OutlierMetrics naive(const std::vector<float>& v, int64_t cols) {
  OutlierMetrics r;
  const int64_t rows = static_cast<int64_t>(v.size()) / cols;
  long double osp = 0, plain = 0, ratio = 0, mean = 0, mean_abs = 0, largest = 0;
  for (const float x : v)
    mean += x, mean_abs += std::fabs(x), largest = std::max<long double>(largest, std::fabs(x));
  mean /= static_cast<long double>(v.size());
  mean_abs /= static_cast<long double>(v.size());
  long double all2 = 0, all4 = 0;
  for (const float x : v) all2 += (x - mean) * (x - mean), all4 += std::pow((x - mean), 4);
  for (int64_t t = 0; t < rows; ++t) {
    std::vector<long double> x(v.begin() + t * cols, v.begin() + (t + 1) * cols), a;
    long double mu = 0, c2 = 0, c4 = 0, raw4 = 0;
    for (const long double e : x) mu += e / static_cast<long double>(cols);
    for (const long double e : x)
      c2 += std::pow(e - mu, 2), c4 += std::pow(e - mu, 4), raw4 += std::pow(e, 4);
    const long double std2 = c2 / static_cast<long double>(cols - 1),
                      m2 = c2 / static_cast<long double>(cols);
    osp += std::max(0.0L, raw4 / static_cast<long double>(cols) / (std2 * std2) - 3);
    plain += c4 / static_cast<long double>(cols) / (m2 * m2) - 3;
    for (const long double e : x) a.push_back(std::fabs(e));
    std::sort(a.begin(), a.end());
    const long double median =
        (a[static_cast<size_t>((cols - 1) / 2)] + a[static_cast<size_t>(cols / 2)]) / 2;
    ratio += a.back() / median;
  }
  const auto n = static_cast<long double>(v.size()), tokens = static_cast<long double>(rows);
  r.tokens = rows;
  r.osp_kurtosis = static_cast<double>(osp / tokens);
  r.kurtosis = static_cast<double>(plain / tokens);
  r.pooled_kurtosis = static_cast<double>(n * all4 / (all2 * all2) - 3);
  r.max_abs = static_cast<double>(largest);
  r.max_to_mean = static_cast<double>(largest / mean_abs);
  r.max_to_median = static_cast<double>(ratio / tokens);
  return r;
}

void expect_equal(const OutlierMetrics& got, const OutlierMetrics& want) {
  const auto near = [](const char* what, std::optional<double> a, std::optional<double> b) {
    ASSERT_EQ(a.has_value(), b.has_value()) << what;
    if (a) {
      EXPECT_NEAR(*a, *b, 1e-9 * (1 + std::fabs(*b))) << what;
    }
  };
  EXPECT_EQ(got.tokens, want.tokens);
  near("osp_kurtosis", got.osp_kurtosis, want.osp_kurtosis);
  near("kurtosis", got.kurtosis, want.kurtosis);
  near("pooled_kurtosis", got.pooled_kurtosis, want.pooled_kurtosis);
  near("max_abs", got.max_abs, want.max_abs);
  near("max_to_mean", got.max_to_mean, want.max_to_mean);
  near("max_to_median", got.max_to_median, want.max_to_median);
}

TEST(Outliers, AgreesWithTheDefinitionsForEvenAndOddWidths) {
  for (const int64_t cols : {2, 5, 64, 97}) {
    std::vector<float> v = normal_values(131 * cols, 2.0, 0.5);
    v[static_cast<size_t>(3 * cols)] = 400.0f;
    expect_equal(measure_outliers(Queue{}, rows_of(v, cols)).metrics(), naive(v, cols));
  }
}

TEST(Outliers, AFarMeanDoesNotDrownThePooledKurtosis) {
  // Raw power sums in double would have no correct digit here: mean^4 / sigma^4 is 1e20.
  std::vector<float> v = normal_values(4096, 0.0625, 4096.0);
  expect_equal(measure_outliers(Queue{}, rows_of(v, 64)).metrics(), naive(v, 64));
}

TEST(Outliers, TheKnownSixNumbersGiveTheKnownKurtosis) {
  std::vector<float> v{0, 1, -1, 2, -2, 10};
  const OutlierMetrics m = measure_outliers(Queue{}, rows_of(v, 6)).metrics();
  EXPECT_NEAR(*m.kurtosis, 0.486428571, 1e-9);
  EXPECT_NEAR(*m.pooled_kurtosis, 0.486428571, 1e-9);
  // raw fourth moment (1+1+16+16+10000)/6, unbiased variance (110 - 100/6)/5
  const double variance = (110.0 - 100.0 / 6.0) / 5.0;
  EXPECT_NEAR(*m.osp_kurtosis, 10034.0 / 6.0 / (variance * variance) - 3.0, 1e-9);
  EXPECT_NEAR(*m.max_to_median, 10.0 / 1.5, 1e-12);
  EXPECT_NEAR(*m.max_to_mean, 10.0 * 6.0 / 16.0, 1e-12);
}

TEST(Outliers, OneSpikeInARowOfZerosHasTheLargestKurtosisThatTheWidthAllows) {
  const int64_t C = 512;
  std::vector<float> v(static_cast<size_t>(C), 0.0f);
  v[17] = -1000.0f;
  const OutlierMetrics m = measure_outliers(Queue{}, rows_of(v, C)).metrics();
  EXPECT_NEAR(*m.kurtosis, C - 2 + 1.0 / (C - 1) - 3, 1e-6);
  // The mean of the spike row is 1000/C and its unbiased variance 1e6/C, so the raw form gives C - 3.
  EXPECT_NEAR(*m.osp_kurtosis, C - 3.0, 1e-6);
  EXPECT_EQ(*m.max_abs, 1000.0);
  EXPECT_NEAR(*m.max_to_mean, C, 1e-9);
  EXPECT_FALSE(m.max_to_median) << "the median is 0: no ratio";
}

TEST(Outliers, TheOspFormClampsEveryTokenAtZeroAndThePlainFormDoesNot) {
  std::vector<float> v{1, -1, 1, -1, 1, -1, 1, -1};  // two-valued: the flattest there is
  const OutlierMetrics m = measure_outliers(Queue{}, rows_of(v, 4)).metrics();
  EXPECT_EQ(*m.osp_kurtosis, 0.0);
  EXPECT_NEAR(*m.kurtosis, -2.0, 1e-12);
}

TEST(Outliers, ConstantRowsHaveNoKurtosisAndDoNotEnterItsMean) {
  std::vector<float> v(4 * 8, 0.1f);
  const OutlierMetrics flat = measure_outliers(Queue{}, rows_of(v, 8)).metrics();
  EXPECT_FALSE(flat.osp_kurtosis || flat.kurtosis || flat.pooled_kurtosis);
  EXPECT_NEAR(*flat.max_to_median, 1.0, 1e-12);
  for (int i = 0; i < 8; ++i) v[static_cast<size_t>(i)] = i % 2 ? 1.0f : -1.0f;
  EXPECT_NEAR(*measure_outliers(Queue{}, rows_of(v, 8)).metrics().kurtosis, -2.0, 1e-12);
}

TEST(Outliers, NanAndInfinityAreCountedAndKeptOutOfTheFigures) {
  std::vector<float> clean = normal_values(6 * 16, 1, 0), dirty = clean;
  dirty.insert(dirty.end(), clean.begin(), clean.begin() + 32);
  dirty[6 * 16 + 3] = std::numeric_limits<float>::quiet_NaN();
  dirty[7 * 16 + 1] = std::numeric_limits<float>::infinity();
  const OutlierMetrics m = measure_outliers(Queue{}, rows_of(dirty, 16)).metrics();
  EXPECT_EQ(m.tokens, 8);
  EXPECT_EQ(m.nonfinite_tokens, 2);
  OutlierMetrics want = naive(clean, 16);
  want.tokens = 8;
  expect_equal(m, want);
}

TEST(Outliers, ThreadsDoNotChangeABit) {
  std::vector<float> v = normal_values(777 * 33, 3, 1);
  Queue queue;
  const std::string one = measure_outliers(queue, rows_of(v, 33)).pack();
  for (const int threads : {2, 3, 5}) {
    queue.threads = threads;
    EXPECT_EQ(measure_outliers(queue, rows_of(v, 33)).pack(), one);
  }
}

TEST(Outliers, MergedMicroBatchesGiveTheFiguresOfTheWhole) {
  std::vector<float> v = normal_values(90 * 24, 1, -2);
  const Tensor all = rows_of(v, 24);
  OutlierSums sums;
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 40}, {40, 40}, {40, 90}})
    sums.merge(measure_outliers(Queue{}, all.row_range(begin, end)));
  expect_equal(sums.metrics(), naive(v, 24));
}

TEST(Outliers, ReadsBf16AndStridedViews) {
  const int64_t rows = 37, width = 48, cols = 20;
  std::vector<float> v = normal_values(rows * width, 1, 0), inside;
  std::vector<bf16> half(v.size());
  for (size_t i = 0; i < v.size(); ++i) half[i] = to_bf16(v[i]);
  const Tensor view = make_tensor(half.data(), {rows, width}, DType::bf16).columns(8, 8 + cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      inside.push_back(to_float(half[static_cast<size_t>(r * width + 8 + c)]));
  expect_equal(measure_outliers(Queue{}, view).metrics(), naive(inside, cols));
}

TEST(Outliers, PackedSumsReadBackToTheSameBits) {
  std::vector<float> v = normal_values(50 * 12, 1, 0.3);
  const OutlierSums sums = measure_outliers(Queue{}, rows_of(v, 12));
  EXPECT_EQ(OutlierSums::unpack(sums.pack()).pack(), sums.pack());
  EXPECT_EQ(OutlierSums::unpack(sums.pack()).metrics().kurtosis, sums.metrics().kurtosis);
  for (const char* bad : {"", "1 2 3", "1 2 3 4 5 6 7 8 9 a b c d x", "1 2 3 4 5 6 7 8 9 a b c d e f"})
    EXPECT_THROW(OutlierSums::unpack(bad), Error) << bad;
}

TEST(Outliers, RefusesOtherTypesAndMeasuresNothingOnMeta) {
  std::vector<int32_t> ids(8);
  EXPECT_THROW(measure_outliers(Queue{}, make_tensor(ids.data(), {2, 4}, DType::i32)), Error);
  const Queue meta{.device = {DeviceKind::meta, 0}};
  EXPECT_EQ(measure_outliers(meta, make_tensor(nullptr, {2, 4}, DType::f32, meta.device)).tokens, 0);
}

}  // namespace
}  // namespace osprey
