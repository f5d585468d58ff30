#pragma once
// Which parameter is trained by which optimizer: the `optim` section of a recipe.

#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "framework/config/fields.h"
#include "framework/finetune/spec.h"
#include "framework/optimizer.h"
#include "framework/parameter.h"
#include "optim/adamw.h"
#include "optim/muon.h"
#include "optim/newton_schulz.h"

namespace osprey {

/// One entry of the list. The first entry whose pattern matches a parameter's name takes it.
struct OptimizerGroupSpec {
  enum class Kind { adamw, muon };

  std::string match = "*";
  Kind kind = Kind::adamw;
  double learning_rate = 0;  // required
  double weight_decay = 0.01;
  // adamw
  std::vector<double> betas = {0.9, 0.95};
  double eps = 1e-8;
  MomentFormat moments = MomentFormat::fp32;
  // muon
  double momentum = 0.95;
  bool nesterov = true;
  NewtonSchulz newton_schulz = NewtonSchulz::polar_express;
  int64_t ns_steps = 5;
  MuonScale scale = MuonScale::match_rms_adamw;

  void fields(Fields& f);
};

/// What assignment needs to know of a parameter.
struct NamedShape {
  std::string name;
  Shape shape;
};

struct GroupAssignment {
  std::vector<int> group;             // of each parameter, an index into the groups
  std::vector<std::string> warnings;  // allowed, but worth a line at the start of a run
};

/// Gives every parameter to the first group that matches it. Pass all parameters, frozen ones too: groups
/// must not change when something thaws. Errors: one Error that lists every pattern that is malformed,
/// matches nothing or comes too late to take anything, every parameter that no pattern matches, and every
/// parameter given to Muon that is not a matrix; with cures.
GroupAssignment assign_groups(std::span<const OptimizerGroupSpec> groups,
                              std::span<const NamedShape> parameters);

/// The optimizers of a run, and which of them trains which parameter: one for each entry, and one more for
/// its matrices that are trained in a subspace, or whose gradients are scaled (finetune.method: apollo).
class OptimizerGroups {
 public:
  /// Errors: as assign_groups and, where gradients are scaled, target_matrices.
  OptimizerGroups(std::span<const OptimizerGroupSpec> groups, const ParamStore& params,
                  const FinetuneSpec& finetune = {});

  /// Errors: throws for a parameter that the store did not hold, and one that its entry cannot train as
  /// finetune.method says.
  const Optimizer& of(const Parameter& parameter) const;
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  std::vector<std::unique_ptr<Optimizer>> optimizers_;    // of the entries
  std::vector<std::unique_ptr<Optimizer>> in_subspaces_;  // the same for matrices in subspaces; null for muon
  std::vector<std::unique_ptr<Optimizer>> scaling_;  // for those whose gradients are scaled; null likewise
  std::unordered_set<std::string> scaled_;           // the names of these
  std::unordered_map<std::string, size_t> group_;
  std::vector<std::string> warnings_;
};

}  // namespace osprey
