#include "framework/scaling/grid.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "kernels/core/check.h"

namespace osprey {
namespace {

/// `largest` with so many key and value heads and layers; ffn_size to a multiple of `unit`, if that of
/// `largest` is.
ModelScale scaled(const ModelScale& largest, int64_t kv_heads, int64_t layers, int64_t unit) {
  ModelScale m;
  m.layers = layers;
  m.kv_heads = kv_heads;
  m.heads = kv_heads * (largest.heads / largest.kv_heads);
  m.hidden_size = largest.hidden_size / largest.heads * m.heads;
  const double ffn = static_cast<double>(largest.ffn_size) * static_cast<double>(m.heads) /
                     static_cast<double>(largest.heads);
  const int64_t step = std::max<int64_t>(8, std::gcd(unit, largest.ffn_size));
  const int64_t near = std::llround(ffn / static_cast<double>(step)) * step;
  m.ffn_size = m.heads == largest.heads ? largest.ffn_size : std::max(step, near);
  return m;
}

/// Is every width a multiple of what divides that of `largest`, up to `unit`?
bool keeps_unit(const ModelScale& m, const ModelScale& largest, int64_t unit) {
  const int64_t head = largest.hidden_size / largest.heads;
  return m.hidden_size % std::gcd(unit, largest.hidden_size) == 0 &&
         m.kv_heads * head % std::gcd(unit, largest.kv_heads * head) == 0;
}

}  // namespace

std::vector<ModelScale> smaller_models(const ModelScale& largest, int64_t count, double ratio, int64_t unit,
                                       const std::function<int64_t(const ModelScale&)>& parameters) {
  require(largest.hidden_size % largest.heads == 0, "scaling",
          "model.hidden_size {} is no multiple of model.heads {}, so it cannot shrink by whole heads",
          largest.hidden_size, largest.heads);
  const double all = std::log(static_cast<double>(parameters(largest)));
  std::vector<ModelScale> models{largest};
  for (int64_t i = 1; i < count; ++i) {
    const double wanted = all - static_cast<double>(i) * std::log(ratio);
    std::optional<ModelScale> best;
    double least = INFINITY;
    for (int64_t kv = 1; kv <= largest.kv_heads; ++kv)
      for (int64_t layers = 1; layers <= largest.layers; ++layers) {
        const ModelScale m = scaled(largest, kv, layers, unit);
        if (!keeps_unit(m, largest, unit)) continue;
        const double width = std::log(static_cast<double>(kv) / static_cast<double>(largest.kv_heads));
        const double depth = std::log(static_cast<double>(layers) / static_cast<double>(largest.layers));
        // A model of another shape is worse than one of another size: laws are of models alike.
        const double miss =
            std::abs(std::log(static_cast<double>(parameters(m))) - wanted) + 0.5 * std::abs(width - depth);
        if (miss < least) least = miss, best = m;
      }
    require(
        best && parameters(*best) < parameters(models.back()), "scaling",
        "a model of {} layers and {} heads has no {} smaller ones at a ratio of {}; raise model.layers and "
        "model.heads, or lower --sizes or --size-ratio",
        largest.layers, largest.heads, count - 1, ratio);
    models.push_back(*best);
  }
  return models;
}

std::vector<int64_t> lengths_for(double budget_flops, const std::vector<double>& flops_per_token,
                                 int64_t count, double ratio, int64_t batch_tokens, int64_t runs) {
  double each = 0, shares = 0;  // FLOPs of one token in every run; the lengths as multiples of the shortest
  for (const double flops : flops_per_token) each += flops * static_cast<double>(runs);
  for (int64_t j = 0; j < count; ++j) shares += std::pow(ratio, static_cast<double>(j));
  const double shortest = budget_flops / (each * shares), batch = static_cast<double>(batch_tokens);
  std::vector<int64_t> lengths;
  for (int64_t j = 0; j < count; ++j) {
    const double tokens = shortest * std::pow(ratio, static_cast<double>(j));
    require(tokens < 1e18, "scaling", "the budget is more than 1e18 tokens; lower --budget");
    lengths.push_back(std::llround(tokens / batch) * batch_tokens);
    const bool fits = lengths.back() > 0 && (j == 0 || lengths[static_cast<size_t>(j) - 1] < lengths.back());
    require(
        fits, "scaling",
        "a budget of {:.3g} FLOPs is too small for {} lengths of different whole batches of {} tokens with {} "
        "models in {} variant{}; the shortest run would have {:.0f} tokens, so raise --budget to about {:.2g}",
        budget_flops, count, batch_tokens, flops_per_token.size(), runs, runs == 1 ? "" : "s", shortest,
        each * shares * batch / (ratio - 1 < 1 ? ratio - 1 : 1));
  }
  return lengths;
}

std::string short_count(int64_t n) {
  const double value = static_cast<double>(n);
  for (const auto& [unit, letter] : {std::pair(1e12, "T"), {1e9, "G"}, {1e6, "M"}, {1e3, "k"}})
    if (value >= unit * 0.9995) return fmt::format("{:.3g}{}", value / unit, letter);
  return fmt::format("{}", n);
}

Variant parse_variant(const std::string& text) {
  const size_t colon = text.find(':');
  Variant v{text.substr(0, colon), {}};
  const bool plain = std::all_of(v.name.begin(), v.name.end(),
                                 [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; });
  require(plain && !v.name.empty(), "scaling",
          "--variant {} must begin with a name of letters, digits, _ and ., as in --variant "
          "adam:optim.0.learning_rate=1e-3",
          text);
  if (colon == std::string::npos) return v;
  std::string now;
  int depth = 0;
  char quote = 0;
  const auto end = [&] {
    const size_t equals = now.find('=');
    require(equals != std::string::npos && equals > 0, "scaling",
            "--variant {}: '{}' must read key.path=value", text, now);
    v.overrides.push_back(std::exchange(now, ""));
  };
  for (size_t i = colon + 1; i < text.size(); ++i) {
    const char c = text[i];
    if (quote) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ',' && depth <= 0) {
      end();
      continue;
    }
    now += c;
  }
  end();
  return v;
}

}  // namespace osprey
