#pragma once
// From rows and columns of a matrix to the pattern of its outliers. Host and device.

#include <cstdint>

#include "kernels/numerics/block_codec.h"

namespace osprey {

/// Whether few rows of a matrix, few of its columns, or neither carry its outliers.
enum class OutlierPattern : int64_t { row, column, none };
inline constexpr int64_t outlier_patterns = 3;

/// Of the mean squares of all rows, or of all columns: bits of fp32 numbers that are not negative.
struct LineSpread {
  uint32_t largest, median;
};

/// A direction has outliers when its largest rms is more than `ratio` times its median rms, and the direction
/// in which that quotient is greater wins; columns do where both are equal. A median of 0 gives nothing to
/// compare with, and a number that is not finite says nothing: none. All devices find the same: products of
/// fp32 numbers are exact in double.
OSPREY_HD OutlierPattern pattern_of(const LineSpread& rows, const LineSpread& columns, double ratio) {
  if (rows.largest >= float_infinity || columns.largest >= float_infinity) return OutlierPattern::none;
  const double row = static_cast<double>(bits_float(rows.largest)),
               row_median = static_cast<double>(bits_float(rows.median)),
               column = static_cast<double>(bits_float(columns.largest)),
               column_median = static_cast<double>(bits_float(columns.median));
  const double square = ratio * ratio;
  const bool by_row = row_median > 0 && row > square * row_median,
             by_column = column_median > 0 && column > square * column_median;
  if (by_row && by_column)
    return row * column_median > column * row_median ? OutlierPattern::row : OutlierPattern::column;
  return by_row ? OutlierPattern::row : by_column ? OutlierPattern::column : OutlierPattern::none;
}

}  // namespace osprey
