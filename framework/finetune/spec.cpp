#include "framework/finetune/spec.h"

#include <algorithm>

#include "kernels/block_format.h"

namespace osprey {

static std::string format_names() {
  std::string names;
  for (const NamedFormat& f : block_formats()) names += (names.empty() ? "" : ", ") + std::string(f.name);
  return names;
}

static bool is_format(const std::string& name) {
  return std::any_of(block_formats().begin(), block_formats().end(),
                     [&](const NamedFormat& f) { return f.name == name; });
}

void FinetuneSpec::fields(Fields& f) {
  f.choice(
      "method", method,
      {{"full", Method::full},
       {"lora", Method::lora},
       {"dora", Method::dora},
       {"galore", Method::galore},
       {"lisa", Method::lisa},
       {"owlore", Method::owlore},
       {"badam", Method::badam},
       {"apollo", Method::apollo}},
      "full: every parameter. lora: low-rank adapters beside frozen weights (2106.09685). dora: the same, and the "
      "length of each weight's rows as a parameter (2402.09353). galore: gradients of "
      "matrices held in a low-rank subspace (2403.03507). lisa: a few layers at a time, drawn uniformly "
      "(2403.17919). owlore: a few layers, drawn by their outlier scores, with gradients in subspaces "
      "(2405.18380). badam: one layer at a time (2404.02827). apollo: whole gradients, scaled as Adam scales random "
      "projections of them, which alone have moments (2412.05270)");
  f.when(takes_turns(), "method is lisa, owlore or badam", [&] {
    f("active_layers", active_layers,
      "layers that train at a time; the others are frozen. Absent: 5 for owlore, 2 for lisa, 1 for badam",
      at_least(1));
    f("interval", interval,
      "optimizer steps from one choice of layers to the next. Absent: 50 for owlore, 20 for lisa, 100 for badam",
      at_least(1));
    Order chosen = turn_order();
    f.choice(
        "order", chosen,
        {{"drawn", Order::drawn},
         {"ascending", Order::ascending},
         {"descending", Order::descending},
         {"shuffled", Order::shuffled}},
        "drawn (owlore, lisa): without replacement, with `scores` as weights where there are any; shuffled "
        "(badam): every layer once before any comes again, in an order that is drawn anew each time");
    order = chosen;
    f.when(chosen == Order::drawn, "order is drawn", [&] {
      f("scores", scores,
        "file of layer scores, one a layer, as osprey inspect --lod writes it; empty: all layers alike");
    });
  });
  f.when(
      takes_turns() || in_subspaces() || scales_gradients(),
      "method is galore, lisa, owlore, badam or apollo", [&] {
        f("train_embedding", train_embedding,
          "train the embedding table in every step. Absent: not with badam");
        f("train_head", train_head,
          "train the head in every step; with tied embeddings it is the embedding table. Absent: not with badam");
        f("train_final_norm", train_final_norm, "train the last norm in every step. Absent: not with badam");
      });
  f.when(in_subspaces() || adapts() || scales_gradients(), "method is galore, owlore, lora, dora or apollo",
         [&] {
           f("rank", rank, "of subspaces, adapters or projections; at most the smaller side of a matrix",
             at_least(1));
           f("targets", targets, "pattern over the names of the matrices of layers that it applies to");
         });
  f.when(in_subspaces() || scales_gradients(), "method is galore, owlore or apollo", [&] {
    f("refresh_every", refresh_every,
      "steps from one choice of a matrix's subspace, or of its random projection, to the next; a layer that becomes "
      "active begins with a new subspace, unless reference is true",
      at_least(1));
    f("scale", scale,
      "factor of the update that comes back from the subspace, or of the scaled gradient (alpha of GaLore and APOLLO; the "
      "published code of the latter takes its root)",
      positive());
  });
  f.when(method == Method::owlore, "method is owlore", [&] {
    f("reference", reference,
      "as the published code does it: every layer keeps its moments, its subspace and its own count of steps while it "
      "sleeps (memory for all layers); subspaces are refreshed by that count, by a full decomposition, and signs are not "
      "aligned; eps stands beside the root of the second moment that is not corrected. The published runs also have "
      "rank: 256, refresh_every: 100 and optim's eps: 1e-6, which stand in keys of their own");
  });
  f.when(in_subspaces() && !reference, "method is galore or owlore, and reference is false", [&] {
    f.choice(
        "basis", basis, {{"randomized", Basis::randomized}, {"exact", Basis::exact}},
        "leading singular vectors of the gradient by a randomized range finder, or by a full decomposition");
  });
  f.when(scales_gradients(), "method is apollo", [&] {
    f.choice(
        "scaling", scaling, {{"channel", Scaling::channel}, {"tensor", Scaling::tensor}},
        "one factor for each channel of a matrix, or one for all of it: APOLLO-Mini is rank: 1, scaling: tensor, "
        "scale: 11.3");
  });
  f.when(adapts(), "method is lora or dora", [&] {
    f("alpha", alpha, "the adapters' product is multiplied by alpha / rank", positive());
    f("rank_stabilized", rank_stabilized, "alpha / sqrt(rank) instead (rsLoRA, 2312.03732)");
    f("adapter", adapter,
      "directory of adapters to go on from, as PEFT or osprey export --to peft writes them, for the same rank, alpha and "
      "targets; empty: new ones");
    f("base_format", base_format,
      ("hold the frozen matrices of layers packed, quantized as they are loaded, with no copy beside them (after "
       "QLoRA, 2305.14314): one of " +
       format_names() + ". Empty: as they are; a directory that holds them packed is used so in any case")
          .c_str());
    f.rule(base_format.empty() || is_format(base_format), "base_format",
           "'" + base_format + "' is no format; there are " + format_names());
  });
}

}  // namespace osprey
