#pragma once
// What all communicators share: the checks before a collective, and the one way to add.

#include <cstdint>
#include <span>

#include "framework/parallel/communicator.h"

namespace osprey {

enum class Collective : int32_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  barrier,
  max,
  sum,
  gather_strings,
  duplicate,
  finish_before,
  connect
};
const char* name(Collective collective);

/// What a rank says it is about to do. Plain bytes: it travels between ranks as it lies in memory.
struct Call {
  int64_t number = 0;  // how many collectives came before on this communicator
  int64_t count = 0;
  uint64_t layout = 0;  // hash of the pieces, or the root
  Collective collective = Collective::barrier;
  DType dtype = DType::f32;
  DType wire = DType::f32;
  uint8_t unused[2] = {};
  bool operator==(const Call&) const = default;
};

/// Describes a call and checks what this rank alone can check (contiguous, known dtypes, pieces inside the
/// buffer, ordered and not overlapping for one owner; in the memory that this communicator moves).
Call reduce_call(Collective collective, const Tensor& data, DType wire, DeviceKind memory = DeviceKind::cpu);
Call pieces_call(Collective collective, const Tensor& flat, std::span<const Piece> pieces, DType wire,
                 int size, DeviceKind memory = DeviceKind::cpu);
Call broadcast_call(const Tensor& data, int root, int size, DeviceKind memory = DeviceKind::cpu);

/// "call 7: all_reduce of 12 f32 as bf16"
std::string describe(const Call& call);
/// Throws the same Error on every rank unless all calls (one for each rank) are equal.
void require_same_calls(std::span<const Call> calls);

/// One rank's contribution, stored as f32, bf16, i32 or f64.
struct Part {
  const void* data = nullptr;
  DType dtype = DType::f32;
};

/// out = parts[0] + parts[1] + ... in this order, in fp32 (i32 data: wrapping integers; f64: in double).
/// f32 parts are rounded to `wire` first.
/// Aliasing: out may be one of the parts.
void sum_parts(void* out, DType dtype, std::span<const Part> parts, int64_t n, DType wire);

/// Rounds n floats to bf16.
void pack_bf16(bf16* out, const float* in, int64_t n);

/// Walks the elements that one rank owns, in segments of a limited number of elements.
class Owned {
 public:
  struct Segment {
    int64_t begin, end;
  };
  Owned(std::span<const Piece> pieces, int owner) : pieces_(pieces), owner_(owner) {}
  /// The next segment, at most `limit` long; empty at the end.
  Segment next(int64_t limit);

 private:
  std::span<const Piece> pieces_;
  int owner_;
  size_t index_ = 0;
  int64_t offset_ = 0;
};

/// Rank r's part of an even split of n elements: boundaries are multiples of 16 elements.
Piece even_piece(int64_t n, int rank, int size);

/// acc = max(acc, v), where NaN wins.
inline double max_or_nan(double acc, double v) { return acc != acc || v <= acc ? acc : v; }

}  // namespace osprey
