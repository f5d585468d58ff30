#include "kernels/block_matmul.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

int64_t check_b(const Queue& queue, std::span<const Packed> b) {
  require(!b.empty(), "block_matmul", "no matrices b");
  int64_t rows = 0;
  for (const Packed& p : b) {
    require_packed("block_matmul", "b", p, queue.device);
    require(p.format == b[0].format && p.cols == b[0].cols, "block_matmul",
            "matrices b must be of one format and width, got {} {} wide beside {} {} wide", name(p.format),
            p.cols, name(b[0].format), b[0].cols);
    rows += p.rows;
  }
  return rows;
}

int64_t pack_bytes(const Queue& queue, std::span<const Packed> b) {
  return queue.target() == DeviceKind::cuda ? cuda::block_pack_bytes(b) : cpu::block_pack_bytes(b);
}

void check_pack(const Queue& queue, const Tensor& pack, std::span<const Packed> b) {
  const int64_t bytes = pack_bytes(queue, b);
  require(pack.dtype == DType::u8 && pack.device == queue.device && pack.shape == Shape{bytes} &&
              reinterpret_cast<uintptr_t>(pack.data) % 64 == 0,
          "block_matmul", "pack must be u8 ({}), aligned to 64 bytes, got {}", bytes, pack);
}

}  // namespace

int64_t block_pack_bytes(const Queue& queue, std::span<const Packed> b) {
  check_b(queue, b);
  return pack_bytes(queue, b);
}

void block_pack(const Queue& queue, const BlockPack& args) {
  check_b(queue, args.b);
  check_pack(queue, args.pack, args.b);
  if (args.pack.numel() == 0) return;
  dispatch(queue, args, cpu::block_pack, cuda::block_pack);
}

namespace {

bool unrotates(const BlockMatmul& args) { return args.mask.defined() || args.rotation; }

void check(const Queue& queue, const BlockMatmul& args) {
  const int64_t n = check_b(queue, args.b);
  require_packed("block_matmul", "a", args.a, queue.device);
  const Packed &a = args.a, &b = args.b[0];
  require(a.cols == b.cols, "block_matmul", "the inner dimensions differ: a is ({}, {}), b ({}, {})", a.rows,
          a.cols, n, b.cols);
  require(a.format.block == b.format.block && a.format.granularity == b.format.granularity, "block_matmul",
          "blocks of a and b must be alike, got {} and {}", name(a.format), name(b.format));
  const Tensor& y = args.y.tensor;
  require_shape("block_matmul", "y", y, {a.rows, n});
  require((y.dtype == DType::f32 || y.dtype == DType::bf16) && y.device == queue.device, "block_matmul",
          "y must be f32 or bf16 on {}, got {}", name(queue.device.kind), y);
  if (args.pack.defined()) check_pack(queue, args.pack, args.b);
  if (unrotates(args)) check_unrotate({args.y, y, args.mask, args.rotation});
}

}  // namespace

bool block_matmul_wants_scratch(const Queue& queue, const BlockMatmul& args) {
  check(queue, args);
  return unrotates(args) && (queue.target() == DeviceKind::cuda || !cpu::block_matmul_unrotates(args));
}

void block_matmul(const Queue& queue, const BlockMatmul& args) {
  if (!block_matmul_wants_scratch(queue, args)) {
    if (args.y.tensor.numel() > 0) dispatch(queue, args, cpu::block_matmul, cuda::block_matmul);
    return;
  }
  const Tensor& y = args.y.tensor;
  require_shape("block_matmul", "scratch", args.scratch, y.shape);
  require(args.scratch.dtype == DType::f32 && args.scratch.device == queue.device, "block_matmul",
          "scratch must be f32 on {}, got {}", name(queue.device.kind), args.scratch);
  block_matmul(queue,
               {.y = {args.scratch}, .a = args.a, .b = args.b, .pack = args.pack, .factor = args.factor});
  unrotate(queue, {.y = args.y, .x = args.scratch, .mask = args.mask, .rotation = args.rotation});
}

std::vector<std::string_view> block_matmul_engines(const Queue& queue, const BlockMatmul& args) {
  check(queue, args);
  return queue.device.kind == DeviceKind::cuda ? cuda::block_matmul_engines(queue, args)
                                               : cpu::block_matmul_engines(queue, args);
}

void block_matmul_by(std::string_view engine, const Queue& queue, const BlockMatmul& args) {
  check(queue, args);
  require(!unrotates(args), "block_matmul", "an engine by name takes nothing back of a rotation or a mask");
  if (args.y.tensor.numel() == 0) return;
  bool had = false;
  std::string known;
  for (const std::string_view name : block_matmul_engines(queue, args)) {
    had = had || name == engine;
    known += known.empty() ? "" : ", ";
    known += name;
  }
  require(had, "block_matmul", "the engine {} cannot be had for these operands; there are {}", engine, known);
  queue.device.kind == DeviceKind::cuda ? cuda::block_matmul_by(engine, queue, args)
                                        : cpu::block_matmul_by(engine, queue, args);
}

}  // namespace osprey::kernels
