#pragma once
// Documents laid side by side into rows of one length.

#include <cstdint>
#include <span>
#include <vector>

namespace osprey {

/// Which documents stand in which row, in this order.
struct PackedRows {
  std::vector<int32_t> documents;
  std::vector<int64_t> begin{0};  // row r holds documents [begin[r], begin[r + 1])

  int64_t rows() const { return static_cast<int64_t>(begin.size()) - 1; }
  std::span<const int32_t> row(int64_t r) const {
    const auto at = static_cast<size_t>(r);
    return std::span(documents).subspan(static_cast<size_t>(begin[at]),
                                        static_cast<size_t>(begin[at + 1] - begin[at]));
  }
};

enum class Packing {
  alone,      // a document a row
  first_fit,  // each document goes to the first row that has room for it
};

/// Lays the documents `order` into rows of `capacity` tokens; lengths[d] is that of document d, at most
/// `capacity`. Time is n log n. Reference: first-fit bin packing, by a tree over the room of the rows.
PackedRows pack(std::span<const int32_t> order, std::span<const int32_t> lengths, int64_t capacity,
                Packing packing);

}  // namespace osprey
