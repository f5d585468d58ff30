#include "framework/ops/magnitude.h"

#include <gtest/gtest.h>

#include "framework/ops/pointwise.h"
#include "kernels/device.h"
#include "kernels/pointwise.h"
#include "tests/support/op_case.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr auto parameter = OpInput::Kind::parameter;

/// The op works in place, and an op case runs twice on the same inputs.
Var fresh(Tape& t, Var x) {
  const Tensor y = t.alloc(t.value(x).shape, t.value(x).dtype);
  kernels::copy(t.queue(), {.y = y, .x = t.value(x)});
  return t.record("fresh", y, {x}, [=, &t](Tensor dy) { t.pass_grad(x, dy); });
}

Tensor constant(Tape& t, const std::vector<float>& values) {
  const Tensor c = t.alloc({static_cast<int64_t>(values.size())}, DType::f32);
  kernels::upload(t.queue(), c, values.data());
  return c;
}

/// Lengths between 1 and 2.
std::vector<float> lengths(int64_t count, int64_t seed) {
  std::vector<float> v;
  for (int64_t i = 0; i < count; ++i) v.push_back(1 + static_cast<float>((i * 7 + seed) % 16) / 16);
  return v;
}

}  // namespace

TEST(ChangeLengths, PassesTheOpCaseOnAllColumnsAndOnTwoParts) {
  struct Part {
    int64_t begin, count;
  };
  const std::pair<int64_t, std::vector<Part>> cases[] = {{24, {{0, 24}}}, {70, {{8, 32}, {56, 14}}}};
  for (const auto& [cols, parts] : cases) {
    OpCase op;
    op.name = fmt::format("change_lengths of {} parts", parts.size());
    op.inputs = {{.shape = {130, cols}}};
    for (const Part& p : parts) op.inputs.push_back({.shape = {p.count}, .kind = parameter, .scale = 0.2});
    op.build = [parts = parts](Tape& t, const std::vector<Var>& v) {
      std::vector<LengthChange> changes;
      for (size_t i = 0; i < parts.size(); ++i)
        changes.push_back({.begin = parts[i].begin,
                           .base = constant(t, lengths(parts[i].count, 3)),
                           .norm = constant(t, lengths(parts[i].count, 5)),
                           .change = v[i + 1]});
      return change_lengths(t, fresh(t, v[0]), changes);
    };
    op.oracle = [parts = parts, cols = cols](const std::vector<Values>& v) {
      Values y = v[0];
      for (size_t i = 0; i < parts.size(); ++i) {
        const auto base = lengths(parts[i].count, 3), norm = lengths(parts[i].count, 5);
        for (size_t r = 0; r < y.size() / static_cast<size_t>(cols); ++r)
          for (size_t c = 0; c < base.size(); ++c)
            y[r * static_cast<size_t>(cols) + static_cast<size_t>(parts[i].begin) + c] *=
                (static_cast<double>(base[c]) + v[i + 1][c]) / static_cast<double>(norm[c]);
      }
      return y;
    };
    check_op(op);
  }
}

TEST(ChangeLengths, LetsOthersGoOnInPlace) {
  OpCase op;
  op.name = "change_lengths and biases on top";
  op.inputs = {{.shape = {40, 24}},
               {.shape = {24}, .kind = parameter, .scale = 0.2},
               {.shape = {24}, .kind = parameter}};
  op.build = [](Tape& t, const std::vector<Var>& v) {
    const LengthChange change{
        .begin = 0, .base = constant(t, lengths(24, 3)), .norm = constant(t, lengths(24, 5)), .change = v[1]};
    Parameter* const bias[] = {t.parameter(v[2])};
    return add_biases(t, change_lengths(t, fresh(t, v[0]), {&change, 1}), bias);
  };
  op.oracle = [](const std::vector<Values>& v) {
    Values y = v[0];
    const auto base = lengths(24, 3), norm = lengths(24, 5);
    for (size_t i = 0; i < y.size(); ++i)
      y[i] = y[i] * (static_cast<double>(base[i % 24]) + v[1][i % 24]) / static_cast<double>(norm[i % 24]) +
             v[2][i % 24];
    return y;
  };
  check_op(op);
}
