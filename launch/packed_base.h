#pragma once
// Weights that stay as they are while adapters train, held packed.

#include <memory>
#include <string>

#include "framework/quant/scheme.h"
#include "launch/recipe.h"

namespace osprey {

/// Where finetune.base_format packs the frozen matrices of layers, or model.path holds weights packed: marks
/// them (Parameter::stored_format), and returns the schemes that their layers compute by; null elsewhere.
/// `params` is declared, without adapters and without memory.
/// Numerics: y = x W^T with x as it is and W as dequantize() gives it, forward and backward.
/// Errors: weights that are packed where no method trains beside them, with formats for inputs as well, with
/// learnt steps, or twice; widths that the blocks of a format do not divide.
std::unique_ptr<QuantSchemes> declare_packed_base(const Recipe& recipe, ParamStore& params);

/// For people: "14 frozen matrices are held packed, in mxfp4"; empty where none is.
std::string packed_base_note(const ParamStore& params);

}  // namespace osprey
