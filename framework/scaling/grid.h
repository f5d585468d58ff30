#pragma once
// Which models to train for how long, so that a scaling law can be fitted to them.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace osprey {

/// What sets the size of a model; the width of a head stays as it is.
struct ModelScale {
  int64_t layers = 1;
  int64_t heads = 1;
  int64_t kv_heads = 1;  // a divisor of heads; heads / kv_heads is kept
  int64_t hidden_size = 1;
  int64_t ffn_size = 1;
  bool operator==(const ModelScale&) const = default;
};

/// `count` models, `largest` first, each with about 1/ratio of the parameters of the one before: layers and
/// width shrink together, as far as whole layers and heads allow, and ffn_size with the width. Widths (of the
/// model, of keys and values, of the MLP) stay multiples of `unit`, a power of two of at least 8 such as the
/// block of a number format, or of the largest power of two that divides that of `largest`. `parameters`
/// counts those of a model.
/// Errors: throws when `largest` is too small for so many different models, or its heads do not divide its
/// width.
std::vector<ModelScale> smaller_models(const ModelScale& largest, int64_t count, double ratio, int64_t unit,
                                       const std::function<int64_t(const ModelScale&)>& parameters);

/// `count` lengths, ascending by `ratio`, in whole batches: such that every model trained at every length,
/// `runs` times (variants), takes about the budget.
/// Units: budget in FLOPs; flops_per_token of each model; lengths in tokens.
/// Errors: throws when the budget is too small for different lengths of at least one batch.
std::vector<int64_t> lengths_for(double budget_flops, const std::vector<double>& flops_per_token,
                                 int64_t count, double ratio, int64_t batch_tokens, int64_t runs);

/// Three digits that mean something: "12.3M", "350k", "1.5G".
std::string short_count(int64_t n);

/// One way to train each model: overrides of the recipe under a name.
struct Variant {
  std::string name;
  std::vector<std::string> overrides;  // key.path=value
};
/// "NAME" or "NAME:key=value,key=value"; commas inside brackets, braces and quotes belong to the value.
/// Errors: a name with anything but letters, digits, '_' and '.', and an assignment without '='.
Variant parse_variant(const std::string& text);

}  // namespace osprey
