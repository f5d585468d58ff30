#include "framework/quant/patterns.h"

#include <cmath>
#include <vector>

namespace osprey {

namespace {

constexpr double most_votes = 1e15;

void votes_field(Fields& f, const char* key, PatternVotes& votes, const char* help) {
  std::vector<double> numbers(votes.begin(), votes.end());
  f(key, numbers, help, between(0, most_votes));
  bool whole = numbers.size() == votes.size();
  for (double n : numbers) whole = whole && n >= 0 && n <= most_votes && n == std::floor(n);
  f.rule(whole, key, "must be three counts: of row, column and none");
  if (!whole) return;
  for (size_t i = 0; i < votes.size(); ++i) votes[i] = static_cast<int64_t>(numbers[i]);
}

}  // namespace

OutlierPattern majority(const PatternVotes& votes) {
  OutlierPattern most = OutlierPattern::none;
  for (OutlierPattern p : {OutlierPattern::column, OutlierPattern::row})
    if (votes[static_cast<size_t>(p)] > votes[static_cast<size_t>(most)]) most = p;
  return most;
}

const char* name(OutlierPattern pattern) {
  return pattern == OutlierPattern::row ? "row" : pattern == OutlierPattern::column ? "column" : "none";
}

void LayerPatterns::fields(Fields& f) {
  f("weight", weight, "of the linear layer, the first of those that share an input");
  votes_field(f, "x", x, "how often outliers of its input stood in few rows, in few columns, in neither");
  votes_field(f, "w", w, "the same of its weights");
  votes_field(f, "dy", dy, "the same of the gradient of its output");
  f("decided", decided, "whether calibration is over");
  f.when(decided, "decided is true", [&] {
    f("forward", rotated.forward, "is the forward product rotated");
    f("dw", rotated.dw, "is the product for weight gradients");
    f("dx", rotated.dx, "is the product for input gradients");
  });
}

int64_t LayerPatterns::votes() const { return x[0] + x[1] + x[2]; }

RotatedProducts LayerPatterns::wanted() const {
  using enum OutlierPattern;
  const OutlierPattern px = majority(x), pw = majority(w), pdy = majority(dy);
  return {.forward = px == column || pw == column,
          .dw = pdy == row || px == row,
          .dx = pdy == column || pw == row};
}

ExtractedProducts LayerPatterns::extracted() const {
  return {.forward = majority(x) == OutlierPattern::row, .dx = majority(dy) == OutlierPattern::row};
}

}  // namespace osprey
