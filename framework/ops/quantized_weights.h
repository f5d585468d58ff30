#pragma once
// Weights of linear layers in packed formats, kept with the (first) parameter they belong to and made again
// when somebody has written a weight since.

#include <array>
#include <span>

#include "framework/ops/pack_cache.h"
#include "framework/quant/scheme.h"

namespace osprey {

/// Weights that share an input, quantized by one scheme.
struct QuantizedWeights {
  size_t count = 0;
  std::array<Packed, most_stacked_weights> packed;  // undefined where the scheme leaves weights alone
  std::array<Tensor, most_stacked_weights> masks;   // as quantize() writes them; undefined where unused
  std::array<Tensor, most_stacked_weights> images;  // what dense products read: the weights themselves, or
                                                    // their quantized values in the compute dtype, rotated,
                                                    // where inputs have a format that does not fit. Undefined
                                                    // where forward reads codes.
  Tensor block_pack;                                // for block_matmul()
  std::span<const Packed> all_packed() const { return {packed.data(), count}; }
  std::span<const Tensor> all_images() const { return {images.data(), count}; }
};

/// Does forward multiply packed operands? Only then do both have formats, with blocks that fit together.
bool multiplies_packed(const QuantGroupSpec& spec);

/// Numerics: compares Parameter::version; a value written without bumping it is not seen.
const QuantizedWeights& quantized_weights(const Queue& queue, std::span<Parameter* const> weights,
                                          const QuantScheme& scheme);

/// A weight as the last forward quantized it by its scheme. Errors: throws where none has.
const Packed& packed_now(const Parameter& weight);

/// The rotation of forward's operands.
kernels::Rotation forward_rotation(const QuantScheme& scheme);

/// Memory of all quantized weights of these parameters, for `osprey plan`.
int64_t quantized_bytes(const ParamStore& params);

}  // namespace osprey
