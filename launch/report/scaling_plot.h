#pragma once
// A picture of a fitted scaling law.

#include <string>

#include "framework/scaling/fit.h"

namespace osprey::report {

/// One SVG. Laws of losses: loss over D with a curve for each N and group, logarithmic axes, points as
/// measured. The qat law: what quantization adds, measured over predicted, with the diagonal. Text from runs
/// is escaped.
std::string scaling_svg(const Fit& fit);

}  // namespace osprey::report
