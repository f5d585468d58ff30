#include "framework/data/packing.h"

#include <algorithm>
#include <bit>

#include "kernels/core/check.h"

namespace osprey {
namespace {

/// The room left in each row, and the largest room of every pair, pair of pairs and so on.
class Rooms {
 public:
  Rooms(size_t rows, int64_t capacity) : leaves_(std::bit_ceil(rows)), most_(2 * leaves_, capacity) {}
  /// Takes `tokens` from the first row that has them.
  size_t take(int64_t tokens) {
    size_t node = 1;
    while (node < leaves_) node = most_[2 * node] >= tokens ? 2 * node : 2 * node + 1;
    most_[node] -= tokens;
    const size_t row = node - leaves_;
    while (node /= 2) most_[node] = std::max(most_[2 * node], most_[2 * node + 1]);
    return row;
  }

 private:
  size_t leaves_;
  std::vector<int64_t> most_;
};

}  // namespace

PackedRows pack(std::span<const int32_t> order, std::span<const int32_t> lengths, int64_t capacity,
                Packing packing) {
  std::vector<size_t> row_of(order.size());
  size_t rows = packing == Packing::alone ? order.size() : 0;
  Rooms rooms(std::max<size_t>(1, order.size()), capacity);
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t length = lengths[static_cast<size_t>(order[i])];
    require(length <= capacity, "packing", "document {} has {} tokens, a row only {}", order[i], length,
            capacity);
    row_of[i] = packing == Packing::alone ? i : rooms.take(length);
    rows = std::max(rows, row_of[i] + 1);
  }
  PackedRows packed;
  packed.begin.assign(rows + 1, 0);
  for (const size_t row : row_of) ++packed.begin[row + 1];
  for (size_t r = 0; r < rows; ++r) packed.begin[r + 1] += packed.begin[r];
  packed.documents.resize(order.size());
  std::vector<int64_t> next(packed.begin.begin(), packed.begin.end() - 1);
  for (size_t i = 0; i < order.size(); ++i)
    packed.documents[static_cast<size_t>(next[row_of[i]]++)] = order[i];
  return packed;
}

}  // namespace osprey
