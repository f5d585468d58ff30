#include "models/spec.h"

#include <fmt/format.h>

#include <cstdint>

namespace osprey {

void ModelSpec::fields(Fields& f) {
  f.choice(
      "family", family, {{"llama", Family::llama}, {"gpt", Family::gpt}},
      "llama: rotary positions, a gated MLP, and many variants. gpt: learned positions, LayerNorm, an MLP of "
      "two matrices and biases everywhere, as in GPT-2 and OPT");
  const auto of_llama = [&](const auto& inside) {
    f.when(family == Family::llama, "family is llama", inside);
  };
  f("layers", layers, "number of blocks", between(1, 4096));
  f("hidden_size", hidden_size, "width C of the residual stream", between(8, 1 << 18));
  f("heads", heads, "query heads", between(1, 1 << 14));
  of_llama([&] {
    f("kv_heads", kv_heads, "key and value heads (grouped-query attention); heads if absent",
      between(1, 1 << 14));
    f("head_size", head_size, "channels of one head; hidden_size / heads if absent", between(8, 256));
  });
  const bool divides = head_size.has_value() || hidden_size % heads == 0;
  f.rule(divides, "heads",
         fmt::format("{} heads do not divide hidden_size {}; choose a divisor or give head_size", heads,
                     hidden_size));
  f.rule(groups() < 1 || heads % groups() == 0, "kv_heads",
         fmt::format("{} kv_heads do not divide {} heads", groups(), heads));
  f.rule(!divides || (head_dim() % 8 == 0 && head_dim() <= 256), "heads",
         fmt::format("the head size {} must be a multiple of 8 up to 256", head_dim()));
  f("ffn_size", ffn_size, "width F of the MLP", between(8, 1 << 20));
  f("vocab_size", vocab_size, "vocabulary; at least the tokenizer's", between(2, INT32_MAX));
  f.when(family == Family::gpt, "family is gpt", [&] {
    f.choice("activation", activation, {{"gelu", Activation::gelu}, {"relu", Activation::relu}},
             "of the MLP: gelu (in its tanh form) makes a GPT-2, relu an OPT");
    f("max_positions", max_positions, "rows of the table of positions; no text may be longer",
      between(1, 1 << 24));
  });
  of_llama([&] {
    f.choice(
        "norm", norm,
        {{"rmsnorm", NormKind::rmsnorm}, {"ssnorm", NormKind::ssnorm}, {"layernorm", NormKind::layernorm}},
        "normalisation. ssnorm is RMSNorm with one learnable scale: no channel can be privileged, a third of "
        "outlier-safe pretraining (arXiv 2506.19697)");
  });
  f("norm_eps", norm_eps, "added to the mean square", positive());
  constexpr double opt_eps = 1e-5;
  f.rule(family != Family::gpt || activation != Activation::relu || norm_eps == opt_eps, "norm_eps",
         "must be 1e-5 with activation relu: the model is stored as an OPT, which has no other");
  of_llama([&] {
    f("rope_theta", rope_theta, "base of the rotary frequencies", positive());
    f.section("rope_scaling", rope_scaling, "positions stretched for longer texts; as they are if absent");
    f("qk_norm", qk_norm, "RMSNorm over each head's queries and keys before rotation");
    f("qkv_bias", qkv_bias, "queries, keys and values have biases, as in Qwen2");
    f("output_bias", output_bias, "so has what attention gives to the residual stream");
    f("mlp_bias", mlp_bias, "the linear layers of the MLP have biases");
  });
  f("tie_embeddings", tie_embeddings, "the head shares the embedding's weight");
  of_llama([&] {
    f("embedding_projection", embedding_projection,
      "two orthogonally initialised C x C matrices, after the embedding and before the head, which spread "
      "what the embedding concentrates; folded into embedding and head on export (arXiv 2506.19697)");
  });
  f.rule(!(tie_embeddings && embedding_projection), "embedding_projection",
         "cannot be folded on export when tie_embeddings is true; choose one");
  f("init_std", init_std,
    "standard deviation of normally initialised matrices; those that write to the residual "
    "stream (attn.o, mlp.down) are divided by sqrt(2 layers)",
    positive());
  of_llama([&] {
    f.section("attention", attention, "attention variant");
    const std::string problem = layer_list_problem(attention.window_layers, layers);
    f.rule(problem.empty(), "attention.window_layers", problem);
  });
}

}  // namespace osprey
