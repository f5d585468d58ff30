#pragma once
// A spec with one of everything, for the tests of the reader, the dumper and the manual.

#include "framework/config/fields.h"

namespace osprey::toy {

struct Norm {
  enum class Kind { rmsnorm, ssnorm };
  Kind kind = Kind::rmsnorm;
  double eps = 1e-6;
  std::optional<double> scale;
  void fields(Fields& f) {
    f.choice("kind", kind, {{"rmsnorm", Kind::rmsnorm}, {"ssnorm", Kind::ssnorm}}, "which normalisation");
    f("eps", eps, "added under the root", positive());
    f.when(kind == Kind::ssnorm, "kind is ssnorm", [&] { f("scale", scale, "first value", positive()); });
  }
  bool operator==(const Norm&) const = default;
};

struct Group {
  std::string match;
  double learning_rate = 0;
  std::vector<double> betas = {0.9, 0.95};
  void fields(Fields& f) {
    f("match", match, "a pattern over parameter names");
    f.required("match");
    f("learning_rate", learning_rate, "peak rate", positive());
    f("betas", betas, "decay rates", between(0, 1));
    f.rule(betas.size() == 2, "betas", "must hold two numbers");
  }
  bool operator==(const Group&) const = default;
};

struct Limits2 {
  int64_t steps = 10;
  void fields(Fields& f) { f("steps", steps, "how many", at_least(1)); }
  bool operator==(const Limits2&) const = default;
};

struct Model {
  int64_t hidden_size = 0, heads = 4;
  bool tied = false;
  Norm norm;
  void fields(Fields& f) {
    f("hidden_size", hidden_size, "width", at_least(1));
    f("heads", heads, "attention heads", at_least(1));
    f("tied", tied, "one matrix for both ends");
    f.section("norm", norm, "normalisation");
    f.rule(hidden_size % heads == 0, "heads", "must divide hidden_size");
  }
  bool operator==(const Model&) const = default;
};

struct Toy {
  Model model;
  std::vector<Group> optim;
  std::string name = "run";
  std::vector<std::string> paths;
  std::optional<int64_t> keep = 3;
  std::optional<int64_t> tokens;
  std::optional<std::string> note;
  std::optional<Limits2> watch;
  double max_grad_norm = 1.0;
  void fields(Fields& f) {
    f("name", name, "of the run");
    f.section("model", model, "what is trained");
    f.list("optim", optim, "groups");
    f("paths", paths, "files");
    f("keep", keep, "checkpoints kept", at_least(1));
    f("tokens", tokens, "to train on", at_least(1));
    f("note", note, "free text");
    f.section("watch", watch, "what is watched");
    f("max_grad_norm", max_grad_norm, "clip above", positive());
  }
  bool operator==(const Toy&) const = default;
};

inline const char* const valid_text = R"(# a comment
name: first
model:
  hidden_size: 64
  heads: 8
  norm: { kind: ssnorm, eps: 1e-5, scale: 0.5 }
optim:
  - { match: "*.weight", learning_rate: 5.0e-4 }
  - match: "*"
    learning_rate: 1e-3
    betas: [0.8, 0.9]
paths: ["data/a b", c.txt]
tokens: 1.0e11
watch: { steps: 4_194_304 }
)";

}  // namespace osprey::toy
