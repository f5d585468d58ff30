#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/numerics/muon.h"

namespace osprey::cpu {

struct MuonTable {
  /// momentum = beta momentum + grad_scale grad; returns the sum of u^2.
  double (*momentum)(float* momentum, const float* grad, int64_t n, float beta, float grad_scale,
                     MuonDirectionFactors u);
  /// x = u over n elements.
  void (*direction_f32)(float* x, const float* momentum, const float* grad, int64_t n,
                        MuonDirectionFactors u);
  void (*direction_bf16)(bf16* x, const float* momentum, const float* grad, int64_t n,
                         MuonDirectionFactors u);
  /// Rows [begin, end) of x (cols, rows) from a direction of shape (rows, cols).
  void (*transposed_f32)(float* x, const float* momentum, const float* grad, int64_t rows, int64_t cols,
                         int64_t begin, int64_t end, MuonDirectionFactors u);
  void (*transposed_bf16)(bf16* x, const float* momentum, const float* grad, int64_t rows, int64_t cols,
                          int64_t begin, int64_t end, MuonDirectionFactors u);
  /// Rows [begin, end) of master (rows, cols); x is (rows, cols) with x_row = cols, x_col = 1, or its
  /// transpose with x_row = 1, x_col = rows. value may be null.
  void (*update_f32)(bf16* value, float* master, const float* x, int64_t cols, int64_t begin, int64_t end,
                     int64_t x_row, int64_t x_col, float step_size, float decay);
  void (*update_bf16)(bf16* value, float* master, const bf16* x, int64_t cols, int64_t begin, int64_t end,
                      int64_t x_row, int64_t x_col, float step_size, float decay);
  /// Copies the part of c (n, n; row stride `stride`) above the diagonal block rows [begin, end) to below it:
  /// c[j][i] = c[i][j] for i in [begin, end), j >= end.
  void (*mirror_f32)(float* c, int64_t n, int64_t stride, int64_t begin, int64_t end);
  void (*mirror_bf16)(bf16* c, int64_t n, int64_t stride, int64_t begin, int64_t end);
};
OSPREY_ISA_TABLE(MuonTable, muon_table)

}  // namespace osprey::cpu
