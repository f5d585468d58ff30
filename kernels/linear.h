#pragma once
// Linear layers: y = x W^T and its two backward products. Several weights with one input (q, k, v;
// gate, up) are one product: they are stacked along their outputs and never copied together.

#include <span>

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

/// Weights (out_i, in) of equal `in`, stacked along `out`.
using Weights = std::span<const Tensor>;

enum class PackFor : uint8_t { forward, dgrad };

/// Size of the packed form of `weights`; 0 where this device or dtype has no use for one.
int64_t linear_pack_bytes(const Queue& queue, Weights weights, PackFor use);

/// Rearranges weights into the layout the product reads fastest. Valid until a weight changes.
/// Shapes: pack one dimension, bf16, linear_pack_bytes() / 2 elements, aligned to 64 bytes.
struct LinearPack {
  Tensor pack;
  Weights weights;
  PackFor use = PackFor::forward;
};
void linear_pack(const Queue& queue, const LinearPack& args);

/// y = x W^T (+ residual).
/// Shapes: y (N, sum out_i), x (N, in); residual like y; pack as linear_pack() left it, or
/// undefined. Aliasing: residual may be y itself; y overlaps nothing else. Numerics: x and weights
/// are both bf16 or both f32; y bf16 or f32; fp32 sums, one rounding at the end. The number of
/// threads does not change the result.
struct LinearForward {
  Tensor y;
  Tensor x;
  Weights weights;
  Tensor pack;
  Tensor residual;
};
void linear_forward(const Queue& queue, const LinearForward& args);

/// dx (+)= dy W.
/// Shapes: dx (N, in), dy (N, sum out_i); pack made for PackFor::dgrad, or undefined.
/// Numerics: as forward; dx of dy's dtype or f32.
struct LinearDgrad {
  Accum dx;
  Tensor dy;
  Weights weights;
  Tensor pack;
};
void linear_dgrad(const Queue& queue, const LinearDgrad& args);

/// dW_i (+)= dy_i^T x; an undefined dW_i is not wanted.
/// Shapes: dweights[i] (out_i, in) f32, dy (N, sum out_i), x (N, in).
/// Numerics: sums over N in fp32, in an order that does not depend on threads.
struct LinearWgrad {
  std::span<const Accum> dweights;
  std::span<const int64_t> outs;  // out_i
  Tensor dy;
  Tensor x;
};
void linear_wgrad(const Queue& queue, const LinearWgrad& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
int64_t linear_pack_bytes(kernels::Weights weights, kernels::PackFor use);
void linear_pack(const Queue& queue, const kernels::LinearPack& args);
void linear_forward(const Queue& queue, const kernels::LinearForward& args);
void linear_dgrad(const Queue& queue, const kernels::LinearDgrad& args);
void linear_wgrad(const Queue& queue, const kernels::LinearWgrad& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
int64_t linear_pack_bytes(kernels::Weights weights, kernels::PackFor use);
void linear_pack(const Queue& queue, const kernels::LinearPack& args);
void linear_forward(const Queue& queue, const kernels::LinearForward& args);
void linear_dgrad(const Queue& queue, const kernels::LinearDgrad& args);
void linear_wgrad(const Queue& queue, const kernels::LinearWgrad& args);
}  // namespace osprey::cuda
