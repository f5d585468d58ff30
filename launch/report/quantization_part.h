#pragma once
// What the report says about quantization: curves for its script and a table.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/report/run_data.h"

namespace osprey::report {

/// By role, the relative error over time: `mean` over all weights of all layers, and `worst`, the mean over
/// the weights of the layer `worst_layer`, which has the largest at the end. Roles without entries are
/// absent.
nlohmann::json quantization_curves(const RunData& run);

/// The section of the page, with room for the charts of the script and the last measurement of each run by
/// layer and role; empty where no run has measured quantization.
std::string quantization_section(const std::vector<RunData>& runs);

}  // namespace osprey::report
