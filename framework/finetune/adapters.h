#pragma once
// Low-rank adapters as parameters of a model, and weights with their adapters merged in.

#include <string>
#include <vector>

#include "framework/checkpoint/hub.h"
#include "framework/finetune/spec.h"
#include "framework/parameter.h"

namespace osprey {

/// A weight and its adapter, by name.
struct AdapterNames {
  std::string weight, a, b;
  std::string magnitude;   // (out) elements; empty: none
  Shape a_shape, b_shape;  // (rank, in), (out, rank)
  float scale = 1;
};

/// Freezes all parameters and declares two for each matrix that matches `targets`:
/// "layers.0.attn.q.lora_a.weight" (rank, in), normal with variance 1 / (3 in), that of PEFT's uniform draws,
/// and "...lora_b.weight" (out, rank), zero; with dora "...lora_magnitude.weight" (out), zero. Before
/// materialize(). Errors: no match, or a rank above a matrix's smaller side.
std::vector<AdapterNames> declare_adapters(const FinetuneSpec& spec, ParamStore& params);

/// Reads weights as weight + scale b a, formed in fp32, with rows of the weight's own lengths plus the
/// magnitude where there is one, and everything else as `read` does. Aliasing: keeps the factors of one
/// weight at a time.
ReadParameter merged(const Queue& queue, ReadParameter read, std::vector<AdapterNames> adapters);

}  // namespace osprey
