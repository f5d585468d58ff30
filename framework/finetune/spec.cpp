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
       {"badam", Method::badam}},
      "full: every parameter. lora: low-rank adapters beside frozen weights (2106.09685). dora: the same, and the "
      "length of each weight's rows as a parameter (2402.09353). galore: gradients of "
      "matrices held in a low-rank subspace (2403.03507). lisa: a few layers at a time, drawn uniformly "
      "(2403.17919). owlore: a few layers, drawn by their outlier scores, with gradients in subspaces "
      "(2405.18380). badam: one layer at a time (2404.02827)");
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
  f.when(takes_turns() || in_subspaces(), "method is galore, lisa, owlore or badam", [&] {
    f("train_embedding", train_embedding, "train the embedding table in every step. Absent: not with badam");
    f("train_head", train_head,
      "train the head in every step; with tied embeddings it is the embedding table. Absent: not with badam");
    f("train_final_norm", train_final_norm, "train the last norm in every step. Absent: not with badam");
  });
  f.when(in_subspaces() || adapts(), "method is galore, owlore, lora or dora", [&] {
    f("rank", rank, "of subspaces or adapters; at most the smaller side of a matrix", at_least(1));
    f("targets", targets, "pattern over the names of the matrices of layers that it applies to");
  });
  f.when(in_subspaces(), "method is galore or owlore", [&] {
    f("refresh_every", refresh_every,
      "steps from one choice of a matrix's subspace to the next; a layer that becomes active begins with a new one",
      at_least(1));
    f("scale", scale, "factor of the update that comes back from the subspace (GaLore's alpha)", positive());
    f.choice(
        "basis", basis, {{"randomized", Basis::randomized}, {"exact", Basis::exact}},
        "leading singular vectors of the gradient by a randomized range finder, or by a full decomposition");
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
