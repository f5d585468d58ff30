#pragma once
// Weights rearranged for the products of linear layers, kept with the (first) parameter they belong to
// and made again when somebody has written a weight since.

#include <span>

#include "framework/parameter.h"
#include "kernels/linear.h"

namespace osprey {

constexpr size_t most_stacked_weights = 4;

/// The packed form of these weights, stacked, or an undefined tensor where the machine has no use for one.
/// Numerics: compares Parameter::version; a value written without bumping it is not seen.
Tensor packed_weights(const Queue& queue, std::span<Parameter* const> weights, kernels::PackFor use);

/// Memory of all packs of these parameters, for `osprey plan`.
int64_t packed_bytes(const ParamStore& params);

}  // namespace osprey
