#pragma once
// What scaling.jsonl is told of a run.

#include <filesystem>

#include "framework/data/tokenizer.h"
#include "framework/scaling/run_record.h"
#include "launch/session.h"

namespace osprey {

/// <run.output_dir>/scaling.jsonl.
std::filesystem::path scaling_file(const Recipe& recipe);

/// All that is known before the run; losses are still missing.
RunRecord record_of(const Recipe& recipe, const Session& session, const Tokenizer& tokenizer);

}  // namespace osprey
