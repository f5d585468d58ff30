#include "framework/telemetry/quantization_observer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/ops/quantized_weights.h"
#include "kernels/quantize.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

using Role = QuantizationWatch::Role;

/// Two ranks that hold the same, as rank `rank` sees them.
class Twins final : public Communicator {
 public:
  explicit Twins(int rank) : rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return 2; }
  std::string kind() const override { return "test"; }
  void sum(std::span<double> values) override {
    for (double& v : values) v *= 2;
  }
  std::vector<std::string> gather_strings(const std::string& mine) override { return {mine, mine}; }
  void all_reduce(Tensor, DType) override {}
  void reduce_scatter(Tensor, std::span<const Piece>, DType) override {}
  void all_gather(Tensor, std::span<const Piece>) override {}
  void broadcast(Tensor, int) override {}
  void barrier() override {}
  void max(std::span<double>) override {}
  std::unique_ptr<Communicator> duplicate() override { return nullptr; }
  void abort(const std::string& why) override { throw Error(why); }

 private:
  int rank_;
};

/// Matrices in mxfp4 with a rotation, some of whose rows have blocks of very different sizes.
struct Operands {
  static constexpr int64_t rows = 24, cols = 128;
  TestBed bed;
  kernels::Rotation rotation{.size = 16, .seed = 1, .stream = 2};
  Parameter& q = bed.params.add("layers.3.attn.q.weight", 3, {rows, cols}, {});
  Parameter& down = bed.params.add("layers.3.mlp.down.weight", 3, {rows, cols}, {});
  Parameter& norm = bed.params.add("layers.3.norm1.weight", 3, {cols}, {});
  Parameter& head = bed.params.add("head.weight", -1, {rows, cols}, {});

  struct Case {
    Tensor x, mask;
    Packed y;
  };
  Case make_case(const std::string& name) {
    Values v = random_values(name, rows * cols, DType::f32);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        double& value = v[static_cast<size_t>(r * cols + c)];
        if (r % 3 == 0 && c < 32) value *= 32;
        if (r % 4 == 0 && c >= 96) value *= 1e-6;
      }
    const auto alloc = [&](const Shape& s, DType d) { return bed.inputs.alloc(s, d); };
    Case c{make(bed.inputs, {rows, cols}, DType::f32, v), alloc({rows, cols / 8}, DType::u8), {}};
    c.y = make_packed(block_format("mxfp4"), rows, cols, alloc);
    kernels::quantize(bed.queue,
                      {.y = c.y, .x = c.x, .rule = ScaleRule::mse, .rotation = rotation, .mask = c.mask});
    return c;
  }
  void show(QuantizationObserver& o, const Parameter& p, Role role, const Case& c) const {
    o.quantized(3, p.name, role, {.sums = {}, .x = c.x, .y = c.y, .rotation = rotation});
  }
};

/// The figures from their definitions, on what the tensors hold.
QuantizationRow expected(Operands& o, const std::vector<Operands::Case>& cases) {
  double squares = 0, errors = 0, clipped = 0, underflow = 0, wide_3 = 0, wide_14 = 0;
  constexpr int64_t rows = Operands::rows, cols = Operands::cols;
  const double count = static_cast<double>(cases.size()), elements = count * rows * cols;
  for (const Operands::Case& c : cases) {
    // The rotated x: unrotate() is the transpose of the rotation, so its columns are the images of unit
    // vectors.
    Values unit(static_cast<size_t>(cols * cols));
    for (int64_t i = 0; i < cols; ++i) unit[static_cast<size_t>(i * cols + i)] = 1;
    const Tensor turned = o.bed.inputs.alloc({cols, cols}, DType::f32);
    kernels::unrotate(
        o.bed.queue,
        {.y = {turned}, .x = make(o.bed.inputs, {cols, cols}, DType::f32, unit), .rotation = o.rotation});
    const Tensor image = o.bed.inputs.alloc({rows, cols}, DType::f32);
    kernels::dequantize(o.bed.queue, {.y = image, .x = c.y});
    const Values x = read(c.x), q = read(image), basis = read(turned);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; ++i) {
        double v = 0;
        for (int64_t k = 0; k < cols; ++k)
          v += x[static_cast<size_t>(r * cols + k)] * basis[static_cast<size_t>(i * cols + k)];
        const double to = q[static_cast<size_t>(r * cols + i)];
        squares += v * v;
        errors += (to - v) * (to - v);
        underflow += v != 0 && to == 0;
        clipped += (c.mask.as<uint8_t>()[r * cols / 8 + i / 8] >> i % 8 & 1) == 0;
      }
      const uint8_t* scales = c.y.scales.as<uint8_t>() + r * (cols / 32);
      const auto [least, most] = std::minmax_element(scales, scales + cols / 32);
      wide_3 += *most - *least > 3;
      wide_14 += *most - *least > 14;
    }
  }
  QuantizationRow row;
  row.elements = static_cast<int64_t>(elements);
  row.relative_error = errors / squares;
  row.clipped = clipped / elements;
  row.underflow = underflow / elements;
  row.wide_rows_3 = wide_3 / (count * rows);
  row.wide_rows_14 = wide_14 / (count * rows);
  return row;
}

void expect_figures(const QuantizationRow& got, const QuantizationRow& wanted) {
  EXPECT_EQ(got.elements, wanted.elements);
  EXPECT_NEAR(*got.relative_error / *wanted.relative_error, 1, 1e-5);
  EXPECT_EQ(got.clipped, wanted.clipped);
  EXPECT_EQ(got.underflow, wanted.underflow);
  EXPECT_EQ(got.wide_rows_3, wanted.wide_rows_3);
  EXPECT_EQ(got.wide_rows_14, wanted.wide_rows_14);
}

}  // namespace

TEST(QuantizationObserver, FiguresAreTheirDefinitionsOverAllMicroBatches) {
  Operands o;
  const auto one = o.make_case("one"), two = o.make_case("two"), w = o.make_case("w");
  QuantizationObserver observer(o.bed.queue, o.bed.params);
  observer.begin_step(true);
  for (const auto* x : {&one, &two}) {
    o.show(observer, o.down, Role::weights, w);
    o.show(observer, o.q, Role::activations, *x);
  }
  const auto world = make_self_comm();
  const auto rows = observer.result(*world);
  ASSERT_EQ(rows.size(), 2u) << "what was not quantized has no row";
  EXPECT_EQ(rows[0].weight, "mlp.down");
  EXPECT_EQ(rows[0].role, Role::weights);
  EXPECT_EQ(rows[1].weight, "attn.q");
  EXPECT_EQ(rows[1].role, Role::activations);
  EXPECT_EQ(rows[1].layer, 3);
  expect_figures(rows[0], expected(o, {w}));
  const QuantizationRow both = expected(o, {one, two});
  expect_figures(rows[1], both);
  for (const double share : {both.clipped, both.underflow, both.wide_rows_3, both.wide_rows_14}) {
    EXPECT_GT(share, 0) << "the case shows nothing";
    EXPECT_LT(share, 1);
  }
}

TEST(QuantizationObserver, AStepBeginsAnewAndOthersAreNotMeasured) {
  Operands o;
  const auto one = o.make_case("one"), two = o.make_case("two");
  QuantizationObserver observer(o.bed.queue, o.bed.params);
  const auto world = make_self_comm();
  observer.begin_step(true);
  EXPECT_TRUE(observer.this_step_only());
  o.show(observer, o.q, Role::gradients, one);
  o.show(observer, o.down, Role::gradients, one);
  observer.begin_step(false);
  EXPECT_FALSE(observer.this_step_only());
  o.show(observer, o.q, Role::gradients, two);
  EXPECT_EQ(observer.result(*world).size(), 2u);
  observer.begin_step(true);
  o.show(observer, o.q, Role::gradients, two);
  const auto rows = observer.result(*world);
  ASSERT_EQ(rows.size(), 1u);
  expect_figures(rows[0], expected(o, {two}));
}

TEST(QuantizationObserver, RanksAddUpAndWeightsCountOnce) {
  Operands o;
  const auto x = o.make_case("x"), w = o.make_case("w");
  QuantizationObserver observer(o.bed.queue, o.bed.params);
  observer.begin_step(true);
  o.show(observer, o.q, Role::weights, w);
  o.show(observer, o.q, Role::activations, x);
  Twins first(0), second(1);
  const auto rows = observer.result(first);
  EXPECT_EQ(rows[0].elements, 2 * Operands::rows * Operands::cols)
      << "the other of these ranks is rank 0 too";
  EXPECT_EQ(rows[1].elements, 2 * Operands::rows * Operands::cols);
  EXPECT_EQ(observer.result(second)[1].elements, 2 * Operands::rows * Operands::cols);
  EXPECT_EQ(observer.result(second)[0].elements, 0) << "a rank above 0 adds nothing for weights";
}

TEST(QuantizationObserver, FollowsOscillationOfTheWeightsItIsToldToOnceAStep) {
  Operands o;
  const auto one = o.make_case("one"), two = o.make_case("two");
  const std::vector<WeightInFormat> followed = {{&o.q, block_format("mxfp4")}};
  OscillationTracker tracker(o.bed.queue, followed);
  QuantizationObserver observer(o.bed.queue, o.bed.params, &tracker);
  const auto step = [&](bool measured, const Operands::Case& first, const Operands::Case& again) {
    observer.begin_step(measured);
    for (const auto* c : {&first, &again}) {
      o.show(observer, o.q, Role::weights, *c);
      o.show(observer, o.q, Role::gradients, *c);
      o.show(observer, o.down, Role::weights, *c);
    }
  };
  step(false, one, two);
  step(false, two, one);
  step(true, one, two);  // from one to two and back to one
  int64_t moved = 0;
  for (int64_t i = 0; i < o.rows * o.cols; ++i) {
    const auto code = [&](const Packed& p) {
      const uint32_t c = p.codes.as<uint8_t>()[i / 2] >> i % 2 * 4 & 15u;
      return c == 8 ? 0u : c;
    };
    moved += one.y.scales.as<uint8_t>()[i / 32] == two.y.scales.as<uint8_t>()[i / 32] &&
             code(one.y) != code(two.y);
  }
  EXPECT_GT(moved, 100);
  const auto rows = observer.result(*make_self_comm());
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].oscillated, static_cast<double>(moved) / (o.rows * o.cols));
  EXPECT_EQ(rows[0].oscillating, rows[0].oscillated) << "one in three looks is more than 0.5%";
  EXPECT_FALSE(rows[1].oscillated) << "not followed";
  EXPECT_FALSE(rows[2].oscillated) << "gradients";
  EXPECT_EQ(nlohmann::json::parse(quantization_entry(rows[0], 1, 1).line())["oscillated"],
            *rows[0].oscillated);
  EXPECT_LT(OscillationTracker::bytes(followed), 5.2 * o.rows * o.cols);
}

TEST(QuantizationObserver, AnEntryHasEveryFigureUnderItsName) {
  QuantizationRow row;
  row.role = Role::gradients;
  row.layer = 2, row.weight = "mlp.up", row.elements = 12;
  row.relative_error = 0.5, row.clipped = 0.25, row.underflow = 0.125, row.wide_rows_3 = 0.75;
  const auto j = nlohmann::json::parse(quantization_entry(row, 7, 70).line());
  EXPECT_EQ(j, nlohmann::json::parse(R"({"event":"quantization","step":7,"tokens":70,"role":"gradients",
      "layer":2,"weight":"mlp.up","relative_error":0.5,"clipped":0.25,"underflow":0.125,"wide_rows_3":0.75,
      "wide_rows_14":0.0,"elements_measured":12})"));
  row.relative_error = {};
  EXPECT_FALSE(nlohmann::json::parse(quantization_entry(row, 7, 70).line()).contains("relative_error"));
}

TEST(QuantizationObserver, TensorBoardGetsErrorsByWeightAndMeansOfTheRest) {
  const TempDir dir;
  QuantizationRow row;
  row.role = Role::weights;
  row.layer = 2, row.weight = "mlp.up", row.relative_error = 0.5;
  TfEventsWriter writer(dir.path(), 0);
  write_quantization(writer, 10, {row, row});
  std::ifstream in(writer.path(), std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(in), {}};
  for (const char* tag : {"quantization/weights/layer_02/mlp.up/relative_error",
                          "quantization/weights/mean/clipped", "quantization/weights/mean/wide_rows_14"})
    EXPECT_NE(all.find(tag), std::string::npos) << tag;
  EXPECT_EQ(all.find("gradients"), std::string::npos);
  EXPECT_EQ(all.find("mlp.up/clipped"), std::string::npos);
}
