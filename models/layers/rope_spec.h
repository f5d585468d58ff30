#pragma once
// How the recipe stretches rotary positions.

#include <cmath>
#include <optional>

#include "framework/config/fields.h"
#include "framework/ops/rope.h"

namespace osprey {

struct RopeScalingSpec {
  enum class Kind { linear, llama3, yarn };
  Kind kind = Kind::llama3;
  double factor = 0;
  int64_t original_len = 0;
  double low_freq_factor = 1, high_freq_factor = 4;
  double beta_slow = 1, beta_fast = 32;
  std::optional<double> attention_factor;

  /// What cosines and sines are multiplied by.
  double magnitude() const {
    if (kind != Kind::yarn) return 1;
    return attention_factor.value_or(0.1 * std::log(factor) + 1);
  }
  /// As the op wants it.
  RopeScaling scaling() const {
    RopeScaling s{
        .factor = factor, .original_len = static_cast<double>(original_len), .magnitude = magnitude()};
    s.kind = kind == Kind::linear   ? RopeScaling::Kind::linear
             : kind == Kind::llama3 ? RopeScaling::Kind::llama3
                                    : RopeScaling::Kind::yarn;
    s.slow = kind == Kind::yarn ? beta_slow : low_freq_factor;
    s.fast = kind == Kind::yarn ? beta_fast : high_freq_factor;
    return s;
  }

  void fields(Fields& f) {
    f.choice("kind", kind, {{"linear", Kind::linear}, {"llama3", Kind::llama3}, {"yarn", Kind::yarn}},
             "linear divides every frequency by the factor; llama3 (Llama 3.1 and later) and yarn (arXiv "
             "2309.00071) leave the fast ones alone");
    f("factor", factor, "how many times longer the texts are than those of the first training", at_least(1));
    f.when(kind != Kind::linear, "kind is llama3 or yarn", [&] {
      f("original_len", original_len, "tokens of the texts of the first training", at_least(1));
    });
    f.when(kind == Kind::llama3, "kind is llama3", [&] {
      f("low_freq_factor", low_freq_factor, "pairs that turn less often within original_len are divided",
        positive());
      f("high_freq_factor", high_freq_factor, "pairs that turn more often within original_len stay",
        positive());
      f.rule(low_freq_factor < high_freq_factor, "low_freq_factor", "must be below high_freq_factor");
    });
    f.when(kind == Kind::yarn, "kind is yarn", [&] {
      f("beta_slow", beta_slow, "pairs that turn less often within original_len are divided", positive());
      f("beta_fast", beta_fast, "pairs that turn more often within original_len stay", positive());
      f.rule(beta_slow < beta_fast, "beta_slow", "must be below beta_fast");
      f("attention_factor", attention_factor,
        "what cosines and sines are multiplied by; 0.1 ln(factor) + 1 if absent", positive());
    });
  }
};

}  // namespace osprey
