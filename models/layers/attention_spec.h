#pragma once
// How the recipe chooses an attention variant.

#include <optional>

#include "framework/config/fields.h"
#include "models/layers/layer_list.h"

namespace osprey {

struct AttentionSpec {
  enum class Kind { softmax, clipped_softmax, gated, sink };
  enum class Gate { headwise, elementwise };

  Kind kind = Kind::softmax;
  double zeta = 1.0;
  std::optional<double> gamma;
  std::optional<double> alpha;
  Gate gate = Gate::headwise;
  double bias_init = 0.0;
  int64_t window = 0;
  std::vector<std::string> window_layers;

  /// Of one layer; 0: it sees all tokens before.
  int64_t window_of(int64_t layer) const {
    return window_layers.empty() || lists_layer(window_layers, layer) ? window : 0;
  }
  /// gamma itself, or -alpha / sequence_len.
  double clip_gamma(int64_t sequence_len) const {
    return gamma ? *gamma : -alpha.value_or(0) / static_cast<double>(sequence_len);
  }

  void fields(Fields& f) {
    f.choice(
        "kind", kind,
        {{"softmax", Kind::softmax},
         {"clipped_softmax", Kind::clipped_softmax},
         {"gated", Kind::gated},
         {"sink", Kind::sink}},
        "attention variant. gated is the one that removes outliers from causal models (Qiu et al. "
        "2505.06708); sink is a learned extra logit per head; clipped_softmax works for encoders but makes "
        "causal models worse to quantize (OPT-125m: kurtosis 1778 -> 19728, W8A8 perplexity 21.2 -> 37.2; "
        "Bondarenko et al. 2306.12929)");
    f("window", window,
      "tokens that a token sees, itself included (sliding window, as in Mistral 7B with 4096); 0: all before "
      "it",
      at_least(0));
    f.when(window > 0, "window is not 0", [&] {
      f("window_layers", window_layers,
        "layers that have the window, such as [0-3, 7]; the others see all tokens. All layers if empty");
    });
    f.when(kind == Kind::clipped_softmax, "kind is clipped_softmax", [&] {
      f("zeta", zeta, "upper stretch of clip((zeta - gamma) p + gamma, 0, 1)", at_least(1));
      f("gamma", gamma, "lower stretch, at most 0; give gamma or alpha", Limits{{}, 0.0, false});
      f("alpha", alpha, "gamma = -alpha / sequence_len; 2..4 is the usual range", positive());
      f.rule(gamma.has_value() != alpha.has_value(), "gamma", "give exactly one of gamma and alpha");
    });
    f.when(kind == Kind::gated, "kind is gated", [&] {
      f.choice("gate", gate, {{"headwise", Gate::headwise}, {"elementwise", Gate::elementwise}},
               "one sigmoid gate for each head, or for each channel of each head, computed from the "
               "attention input");
      f("bias_init", bias_init, "initial gate bias; 0 starts the gates near one half");
    });
  }
};

}  // namespace osprey
