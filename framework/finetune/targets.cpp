#include "framework/finetune/targets.h"

#include <algorithm>

#include "framework/config/glob.h"
#include "kernels/core/check.h"

namespace osprey {

std::vector<Parameter*> target_matrices(const FinetuneSpec& spec, const ParamStore& params) {
  const Glob targets(spec.targets);
  std::vector<Parameter*> found;
  for (const auto& p : params.all()) {
    if (p->layer < 0 || !p->matrix() || !targets.matches(p->name)) continue;
    require(spec.rank <= std::min(p->shape[0], p->shape[1]), "finetune.rank",
            "{} is more than the smaller side of {} {}; lower it", spec.rank, p->name, p->shape);
    found.push_back(p.get());
  }
  require(!found.empty(), "finetune.targets", "\"{}\" matches no matrix of a layer", spec.targets);
  return found;
}

}  // namespace osprey
