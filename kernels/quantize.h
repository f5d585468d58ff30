#pragma once
// From numbers to packed blocks and back, with what goes with it: rotations, masks, measured errors.

#include "kernels/block_format.h"
#include "kernels/core/queue.h"

namespace osprey::kernels {

/// A randomised Hadamard transform of groups of `size` neighbours along the quantized dimension:
/// x' = (x .* s) H / sqrt(size), H Sylvester's matrix. The signs s are on the input side: on the output side
/// they would commute with every symmetric quantizer and randomise nothing. They are a function of (seed,
/// stream) and of the index within the group; both operands of a product must use the same ones. The draws of
/// stochastic rounding never meet them, whatever the seeds. Numerics: fp32, sums of neighbours first.
struct Rotation {
  int size = 0;  // 0: none; else 16, 32, 64 or 128
  uint64_t seed = 0, stream = 0;
  // (1) f64 on the device, or undefined; for quantize() and measure_quantization() alone. Its value is added
  // to the stream, so that a recorded step draws anew whenever it is replayed.
  Tensor step = {};
  explicit operator bool() const { return size > 0; }
};
/// prescale / sqrt(size), in one rounding: what a sum of a rotation is multiplied by; prescale without one.
float rotation_factor(const Rotation& rotation, float prescale);

struct Rounding {
  enum class Kind : uint8_t { nearest_even, stochastic } kind = Kind::nearest_even;
  uint64_t seed = 0,
           stream = 0;  // of the draws of stochastic rounding; element (r, c) of y draws number r * cols + c,
                        // of 8 bits. Unbiased where the rule does not clip: ceil, rceil, even with f32
                        // scales, a smaller prescale
  Tensor step = {};     // as of a rotation
};

/// y = quantize(prescale * rotate(x)), or of x's transpose.
/// Shapes: x (N, K) bf16 or f32, or packed_x (N, K); y (N, K), or (K, N) when transposed: blocks always run
/// along y's rows. rotation.size divides y.cols. mask (y.rows, y.cols / 8) u8, out, or undefined: bit i % 8
/// of byte i / 8 is 1 where element i was not clipped: |x'| <= largest element * scale; with f32 scales that
/// is all but by rules stats and lsq, and so it is in a block whose e4m3 scale underflowed to 0.
/// Numerics: fp32. Scale rules: see ScaleRule. A block with a NaN or Inf, and with an f32 scale its whole row
/// or matrix, becomes NaN: its scale is, its codes and mask are 0. A block of zeros, or whose scale
/// underflows, has scale code 0 (e8m0: 2^-127) and codes 0. With e4m3 scales y.tensor_scale follows from the
/// largest finite |x'|. All devices find the same bits, and the number of threads changes none.
struct Quantize {
  Packed y;
  Tensor x = {};
  Packed packed_x = {};  // instead of x
  bool transpose = false;
  ScaleRule rule = ScaleRule::even;
  Rounding rounding = {};
  Rotation rotation = {};
  float prescale = 1;
  Tensor mask = {};
  Tensor step = {};  // (1), or (y.rows) where rows have scales; bf16 or f32: of rule lsq, and of no other
};
void quantize(const Queue& queue, const Quantize& args);

/// y = factor * x, or of x's transpose.
/// Shapes: x (N, K); y (N, K) or (K, N), bf16 or f32.
struct Dequantize {
  Tensor y;
  Packed x;
  bool transpose = false;
  float factor = 1;
};
void dequantize(const Queue& queue, const Dequantize& args);

/// y (+)= unrotate(mask .* x), the transpose of what quantize() did before rounding: for gradients that
/// arrived in the rotated basis.
/// Shapes: x, y (N, K), f32 or bf16; mask as quantize() wrote it, or undefined (all ones). y may be x.
struct Unrotate {
  Accum y;
  Tensor x;
  Tensor mask = {};
  Rotation rotation = {};
};
void unrotate(const Queue& queue, const Unrotate& args);
/// Errors: throws where unrotate() would.
void check_unrotate(const Unrotate& args);

/// Sums over a quantization, for telemetry: into `sums` go, in this order, sum x^2, sum (q - x)^2, elements,
/// elements that were clipped, nonzero elements that became zero, rows, rows whose scales span more than
/// 2^3, and more than 2^14 (scales with code 0, those of all-zero blocks, and NaN do not count).
/// Shapes: x as quantize() saw it (before rotation and prescale), y what came out, not transposed; sums
/// (quantization_sums) f64, overwritten unless `add` says otherwise. Numerics: fp32 per element, sums in f64
/// over fixed chunks in fixed order; the total is added to what `sums` held.
inline constexpr int64_t quantization_sums = 8;
struct MeasureQuantization {
  Tensor sums;
  Tensor x;
  Packed y;
  Rotation rotation = {};
  float prescale = 1;
  ScaleRule rule = ScaleRule::even;  // as quantize() had it
  bool add = false;
};
void measure_quantization(const Queue& queue, const MeasureQuantization& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void quantize(const Queue& queue, const kernels::Quantize& args);
void dequantize(const Queue& queue, const kernels::Dequantize& args);
void unrotate(const Queue& queue, const kernels::Unrotate& args);
void measure_quantization(const Queue& queue, const kernels::MeasureQuantization& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void quantize(const Queue& queue, const kernels::Quantize& args);
void dequantize(const Queue& queue, const kernels::Dequantize& args);
void unrotate(const Queue& queue, const kernels::Unrotate& args);
void measure_quantization(const Queue& queue, const kernels::MeasureQuantization& args);
}  // namespace osprey::cuda
