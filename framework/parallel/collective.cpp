#include "framework/parallel/collective.h"

#include <algorithm>

namespace osprey {

const char* name(Collective collective) {
  switch (collective) {
    case Collective::all_reduce:
      return "all_reduce";
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::all_gather:
      return "all_gather";
    case Collective::broadcast:
      return "broadcast";
    case Collective::barrier:
      return "barrier";
    case Collective::max:
      return "max";
    case Collective::sum:
      return "sum";
    case Collective::gather_strings:
      return "gather_strings";
    case Collective::duplicate:
      return "duplicate";
    case Collective::finish_before:
      return "finish_before";
    case Collective::connect:
      return "connect";
  }
  return "?";
}

static void require_data(const char* where, const Tensor& t, DeviceKind memory) {
  require(t.contiguous(), where, "needs contiguous data, got {} with gaps", t);
  require(t.device.kind == memory, where, "needs data in memory of {}, got {} on {}", name(memory), t,
          name(t.device.kind));
  require(t.data != nullptr || t.numel() == 0, where, "got {} without memory", t);
}

static void require_wire(const char* where, const Tensor& t, DType wire) {
  const bool ok = (t.dtype == wire && wire != DType::bf16) || (t.dtype == DType::f32 && wire == DType::bf16);
  require(ok, where,
          "sums f32 data sent as f32 or bf16, or i32 and f64 data sent as they are; got {} sent as {}", t,
          name(wire));
}

Call reduce_call(Collective collective, const Tensor& data, DType wire, DeviceKind memory) {
  require_data(name(collective), data, memory);
  require_wire(name(collective), data, wire);
  return {.count = data.numel(), .collective = collective, .dtype = data.dtype, .wire = wire};
}

Call pieces_call(Collective collective, const Tensor& flat, std::span<const Piece> pieces, DType wire,
                 int size, DeviceKind memory) {
  const char* where = name(collective);
  require_data(where, flat, memory);
  if (collective == Collective::reduce_scatter) require_wire(where, flat, wire);
  uint64_t layout = 1469598103934665603ull;
  const auto mix = [&](int64_t v) { layout = (layout ^ static_cast<uint64_t>(v)) * 1099511628211ull; };
  int64_t last = 0;
  for (const Piece& p : pieces) {
    require(0 <= p.owner && p.owner < size, where, "piece [{}, {}) belongs to rank {} of {}", p.begin, p.end,
            p.owner, size);
    require(last <= p.begin && p.begin <= p.end && p.end <= flat.numel(), where,
            "pieces must ascend inside {}, got [{}, {}) after {}", flat.str(), p.begin, p.end, last);
    last = p.end;
    mix(p.owner), mix(p.begin), mix(p.end);
  }
  return {
      .count = flat.numel(), .layout = layout, .collective = collective, .dtype = flat.dtype, .wire = wire};
}

Call broadcast_call(const Tensor& data, int root, int size, DeviceKind memory) {
  require_data("broadcast", data, memory);
  require(0 <= root && root < size, "broadcast", "root must be below {}, got {}", size, root);
  return {.count = data.numel(),
          .layout = static_cast<uint64_t>(root),
          .collective = Collective::broadcast,
          .dtype = data.dtype,
          .wire = data.dtype};
}

std::string describe(const Call& c) {
  std::string text =
      fmt::format("call {}: {} of {} {}", c.number, name(c.collective), c.count, name(c.dtype));
  if (c.wire != c.dtype) text += fmt::format(" as {}", name(c.wire));
  if (c.collective == Collective::broadcast) text += fmt::format(" from rank {}", c.layout);
  return text;
}

void require_same_calls(std::span<const Call> calls) {
  for (size_t r = 1; r < calls.size(); ++r) {
    if (calls[r] == calls[0]) continue;
    const std::string a = describe(calls[0]), b = describe(calls[r]);
    fail(name(calls[r].collective), "ranks disagree: rank {} is at {{{}}}, rank 0 is at {{{}}}{}", r, b, a,
         a == b ? "; the pieces differ" : "");
  }
}

namespace {

constexpr int64_t kBlock = 2048;  // floats; stays in L1

void take_first(float* acc, const Part& part, int64_t at, int64_t n, DType wire) {
  if (part.dtype == DType::bf16) {
    const bf16* in = static_cast<const bf16*>(part.data) + at;
    for (int64_t i = 0; i < n; ++i) acc[i] = to_float(in[i]);
  } else if (wire == DType::bf16) {
    const float* in = static_cast<const float*>(part.data) + at;
    for (int64_t i = 0; i < n; ++i) acc[i] = to_float(to_bf16(in[i]));
  } else {
    std::copy_n(static_cast<const float*>(part.data) + at, n, acc);
  }
}

void take_next(float* acc, const Part& part, int64_t at, int64_t n, DType wire) {
  if (part.dtype == DType::bf16) {
    const bf16* in = static_cast<const bf16*>(part.data) + at;
    for (int64_t i = 0; i < n; ++i) acc[i] += to_float(in[i]);
  } else if (wire == DType::bf16) {
    const float* in = static_cast<const float*>(part.data) + at;
    for (int64_t i = 0; i < n; ++i) acc[i] += to_float(to_bf16(in[i]));
  } else {
    const float* in = static_cast<const float*>(part.data) + at;
    for (int64_t i = 0; i < n; ++i) acc[i] += in[i];
  }
}

/// Integers as unsigned ones, which wrap.
template <class T>
void sum_unrounded(T* out, std::span<const Part> parts, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T acc = static_cast<const T*>(parts[0].data)[i];
    for (const Part& part : parts.subspan(1)) acc += static_cast<const T*>(part.data)[i];
    out[i] = acc;
  }
}

}  // namespace

void sum_parts(void* out, DType dtype, std::span<const Part> parts, int64_t n, DType wire) {
  if (dtype == DType::i32) return sum_unrounded(static_cast<uint32_t*>(out), parts, n);
  if (dtype == DType::f64) return sum_unrounded(static_cast<double*>(out), parts, n);
  alignas(64) float acc[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t len = std::min(kBlock, n - at);
    take_first(acc, parts[0], at, len, wire);
    for (size_t r = 1; r < parts.size(); ++r) take_next(acc, parts[r], at, len, wire);
    std::copy_n(acc, len, static_cast<float*>(out) + at);
  }
}

void pack_bf16(bf16* out, const float* in, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_bf16(in[i]);
}

Owned::Segment Owned::next(int64_t limit) {
  for (; index_ < pieces_.size(); ++index_, offset_ = 0) {
    const Piece& p = pieces_[index_];
    const int64_t begin = p.begin + offset_;
    if (p.owner != owner_ || begin >= p.end) continue;
    const int64_t end = std::min(p.end, begin + limit);
    offset_ = end - p.begin;
    return {begin, end};
  }
  return {0, 0};
}

Piece even_piece(int64_t n, int rank, int size) {
  const int64_t units = (n + 15) / 16;
  return {rank, std::min(n, units * rank / size * 16), std::min(n, units * (rank + 1) / size * 16)};
}

}  // namespace osprey
