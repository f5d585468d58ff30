#include "kernels/quantize.h"

#include <cmath>

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

void require_rotation(const char* where, const Rotation& r, int64_t cols) {
  require(r.size == 0 || r.size == 16 || r.size == 32 || r.size == 64 || r.size == 128, where,
          "a rotation has size 16, 32, 64 or 128, got {}", r.size);
  require(r.size == 0 || cols % r.size == 0, where, "a rotation of {} does not divide rows of {}", r.size,
          cols);
}

void require_step(const char* where, const Tensor& step, Device device) {
  if (!step.defined()) return;
  require(step.numel() == 1 && step.dtype == DType::f64 && step.device == device, where,
          "step must be one f64 on {}, got {}", name(device.kind), step);
}

void require_mask(const char* where, const Tensor& mask, int64_t rows, int64_t cols) {
  if (!mask.defined()) return;
  require(cols % 8 == 0, where, "a mask needs rows of whole bytes: {} is no multiple of 8", cols);
  require(mask.dtype == DType::u8, where, "mask must be u8, got {}", mask);
  require_shape(where, "mask", mask, {rows, cols / 8});
}

void require_matrix(const char* where, const char* what, const Tensor& t, int64_t rows, int64_t cols) {
  require(t.dtype == DType::f32 || t.dtype == DType::bf16, where, "{} must be f32 or bf16, got {}", what, t);
  require(t.rows() == rows && t.cols() == cols, where, "{} must be ({}, {}), got {}", what, rows, cols, t);
}

}  // namespace

float rotation_factor(const Rotation& rotation, float prescale) {
  return rotation ? static_cast<float>(static_cast<double>(prescale) / std::sqrt(rotation.size)) : prescale;
}

void quantize(const Queue& queue, const Quantize& a) {
  const char* where = "quantize";
  require_packed(where, "y", a.y, queue.device);
  const BlockFormat& f = a.y.format;
  const int64_t x_rows = a.transpose ? a.y.cols : a.y.rows, x_cols = a.transpose ? a.y.rows : a.y.cols;
  require(a.x.defined() != a.packed_x.defined(), where, "either x or packed_x, not both or none");
  if (a.x.defined()) {
    require_matrix(where, "x", a.x, x_rows, x_cols);
  } else {
    require_packed(where, "packed_x", a.packed_x, queue.device);
    require(a.packed_x.rows == x_rows && a.packed_x.cols == x_cols, where,
            "packed_x must be ({}, {}), got ({}, {})", x_rows, x_cols, a.packed_x.rows, a.packed_x.cols);
  }
  require(a.rule != ScaleRule::mse || (f.element == Element::e2m1 && f.scale == ScaleType::e8m0), where,
          "rule mse is for e2m1 elements with e8m0 scales, not for {}", name(f));
  require(a.rule != ScaleRule::four_over_six || (f.element == Element::e2m1 && f.scale == ScaleType::e4m3),
          where, "rule four_over_six is for e2m1 elements with e4m3 scales, not for {}", name(f));
  require(a.rule != ScaleRule::stats || f.scale == ScaleType::f32, where,
          "rule stats is for f32 scales, not for {}", name(f));
  require(
      a.rule == ScaleRule::lsq || allows(f.scale, f.element, a.rule), where,
      "rules floor and ceil are for e8m0 scales and rceil for those and e4m3 scales, not for {}; take even",
      name(f));
  require((a.rule == ScaleRule::lsq) == a.step.defined(), where,
          "rule lsq needs a step, and other rules have none");
  if (a.rule == ScaleRule::lsq) {
    require(f.scale == ScaleType::f32 && f.granularity != Granularity::block, where,
            "rule lsq is for one f32 scale of a row or of the matrix, not for {}", name(f));
    require(a.step.dtype == DType::f32 || a.step.dtype == DType::bf16, where,
            "step must be f32 or bf16, got {}", a.step);
    require_shape(where, "step", a.step, {f.granularity == Granularity::row ? a.y.rows : 1});
  }
  require_rotation(where, a.rotation, a.y.cols);
  require_step(where, a.rotation.step, queue.device);
  require_step(where, a.rounding.step, queue.device);
  require_mask(where, a.mask, a.y.rows, a.y.cols);
  dispatch(queue, a, cpu::quantize, cuda::quantize);
}

void dequantize(const Queue& queue, const Dequantize& a) {
  const char* where = "dequantize";
  require_packed(where, "x", a.x, queue.device);
  require_matrix(where, "y", a.y, a.transpose ? a.x.cols : a.x.rows, a.transpose ? a.x.rows : a.x.cols);
  dispatch(queue, a, cpu::dequantize, cuda::dequantize);
}

void check_unrotate(const Unrotate& a) {
  const char* where = "unrotate";
  require_matrix(where, "x", a.x, a.x.rows(), a.x.cols());
  require_matrix(where, "y", a.y.tensor, a.x.rows(), a.x.cols());
  require_rotation(where, a.rotation, a.x.cols());
  require(!a.rotation.step.defined(), where, "its rotation may not depend on a step");
  require_mask(where, a.mask, a.x.rows(), a.x.cols());
}

void unrotate(const Queue& queue, const Unrotate& a) {
  check_unrotate(a);
  dispatch(queue, a, cpu::unrotate, cuda::unrotate);
}

void measure_quantization(const Queue& queue, const MeasureQuantization& a) {
  const char* where = "measure_quantization";
  require_packed(where, "y", a.y, queue.device);
  require_matrix(where, "x", a.x, a.y.rows, a.y.cols);
  require_rotation(where, a.rotation, a.y.cols);
  require_step(where, a.rotation.step, queue.device);
  require(a.sums.dtype == DType::f64, where, "sums must be f64, got {}", a.sums);
  require_shape(where, "sums", a.sums, {quantization_sums});
  dispatch(queue, a, cpu::measure_quantization, cuda::measure_quantization);
}

}  // namespace osprey::kernels
