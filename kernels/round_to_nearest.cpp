#include "kernels/round_to_nearest.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void round_to_nearest(const Queue& queue, const RoundToNearest& a) {
  require(2 <= a.bits && a.bits <= 8, "round_to_nearest", "2 to 8 bits, got {}", a.bits);
  require(a.y.rows() == a.x.rows() && a.y.cols() == a.x.cols() && a.y.dtype == a.x.dtype &&
              a.x.dtype != DType::i32,
          "round_to_nearest", "y must be like x {}, got {}", a.x, a.y);
  require(a.clip == ClipSearch::none || a.grid == RowGrid::symmetric, "round_to_nearest",
          "the clip search is for symmetric rows");
  dispatch(queue, a, cpu::round_to_nearest, cuda::round_to_nearest);
}

}  // namespace osprey::kernels
