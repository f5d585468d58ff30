#include "framework/data/batch_rows.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/check.h"

namespace osprey {

BatchRows BatchRows::of(const BatchView& batch, int64_t sequence_len, Documents documents) {
  require(batch.tokens.shape.rank == 2, "loader", "tokens must be (B, T), got {}", batch.tokens.str());
  const Shape shape = batch.tokens.shape;
  require(shape[1] == sequence_len, "loader", "tokens must have {} columns (data.sequence_len), got {}",
          sequence_len, batch.tokens.str());
  const auto pointer = [&](const char* name, const Tensor& t) {
    require_shape("loader", name, t, shape);
    require(t.contiguous() && t.device.kind == DeviceKind::cpu, "loader",
            "{} must be contiguous, in host memory", name);
    return t.as<int32_t>();
  };
  return {
      .count = shape[0],
      .tokens = shape[1],
      .token = pointer("tokens", batch.tokens),
      .target = pointer("targets", batch.targets),
      .position = pointer("positions", batch.positions),
      .start = documents == Documents::joined ? nullptr : pointer("document_start", batch.document_start)};
}

BatchRows BatchRows::row(int64_t r) const {
  const int64_t at = r * tokens;
  return {1, tokens, token + at, target + at, position + at, start ? start + at : nullptr};
}

void BatchRows::mark_document(int64_t begin, int64_t end) const {
  end = std::min(end, tokens);
  if (begin >= end) return;
  std::iota(position + begin, position + end, 0);
  std::fill(start + begin, start + end, static_cast<int32_t>(begin));
}

int64_t first_row(int64_t global_rows, int64_t micro_step, int64_t rank, int64_t ranks, int64_t rows) {
  require(micro_step >= 0 && rank >= 0 && rank < ranks, "loader",
          "no such batch: micro step {}, rank {} of {}", micro_step, rank, ranks);
  const int64_t micro_rows = ranks * rows, first = micro_step * micro_rows + rank * rows;
  require(global_rows % micro_rows == 0 && first + rows <= global_rows, "loader",
          "{} rows a step do not divide into micro steps of {} ranks times {} rows, or micro step "
          "{} is past the last",
          global_rows, ranks, rows, micro_step);
  return first;
}

}  // namespace osprey
