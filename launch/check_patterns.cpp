#include "launch/check_patterns.h"

#include "framework/finetune/finetuning.h"
#include "launch/packed_base.h"
#include "models/make_model.h"
#include "optim/groups.h"

namespace osprey {

std::vector<std::string> check_patterns(const Recipe& recipe) {
  ParamStore params;
  make_model(recipe.model, recipe.data.sequence_len)->declare(params);
  const auto base = declare_packed_base(recipe, params);
  const Finetuning finetuning(recipe.finetune, params, static_cast<uint64_t>(recipe.run.seed));
  const QuantSchemes schemes(recipe.quant, params, 0, recipe.train.global_batch_tokens);
  const OptimizerGroups groups(recipe.optim, params, recipe.finetune);
  std::vector<std::string> lines;
  for (const std::string& warning : groups.warnings()) lines.push_back("note: " + warning);
  if (const std::string packed = packed_base_note(params); !packed.empty()) lines.push_back(packed);
  for (const std::string& line : schemes.timeline(recipe.train.total_steps())) lines.push_back(line);
  return lines;
}

}  // namespace osprey
