#include "launch/bench/quantize_bench.h"

#include <fmt/format.h>

#include <functional>

#include "kernels/e4m3_image.h"
#include "kernels/quantize.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/measure.h"

namespace osprey::bench {

void bench_quantize(const Queue& queue) {
  // On a GPU more than its caches hold.
  const int64_t rows = queue.device.kind == DeviceKind::cuda ? 16384 : 2048,
                cols = queue.device.kind == DeviceKind::cuda ? 4096 : 2048;
  const int rounds = queue.device.kind == DeviceKind::cuda ? 10 : 40;
  using Kind = kernels::Rounding::Kind;
  Arena memory("bench", queue.device, 8 * rows * cols);
  const Tensor x = random_tensor(queue, memory, {rows, cols}, DType::bf16, 1),
               mask = memory.alloc({rows, cols / 8}, DType::u8);
  const Packed packed =
      make_packed(block_format("mxfp4"), rows, cols, std::bind_front(&Arena::alloc, &memory));
  kernels::quantize(queue, {.y = packed, .x = x});
  const kernels::Rotation rotation{.size = 32, .seed = 1, .stream = 2};
  const kernels::Rounding stochastic{.kind = Kind::stochastic, .seed = 3, .stream = 4};
  struct Case {
    const char* words;
    const char* format;
    kernels::Quantize args;
  };
  const double copy = copy_rate(queue);
  fmt::print("quantizing ({}, {}) bf16 numbers; a large copy has {:.1f} GB/s; best of {}\n", rows, cols,
             copy / 1e9, rounds);
  fmt::print("  {:<52}{:>12}{:>10}\n", "operand", "Gelements/s", "of copy");
  for (const Case& c : {
           Case{"mxfp4, rows", "mxfp4", {.x = x}},
           Case{"mxfp4, rows, rotated", "mxfp4", {.x = x, .rotation = rotation}},
           Case{"mxfp4, rows, rotated, rule mse, with a mask",
                "mxfp4",
                {.x = x, .rule = ScaleRule::mse, .rotation = rotation, .mask = mask}},
           Case{"mxfp4, rows, rotated, stochastic",
                "mxfp4",
                {.x = x, .rule = ScaleRule::rceil, .rounding = stochastic, .rotation = rotation}},
           Case{"mxfp4, transposed", "mxfp4", {.x = x, .transpose = true}},
           Case{"mxfp4, transposed, rotated, stochastic",
                "mxfp4",
                {.x = x,
                .transpose = true,
                .rule = ScaleRule::rceil,
                .rounding = stochastic,
                .rotation = rotation}},
           Case{"mxfp4 of mxfp4, transposed, rotated, stochastic",
                "mxfp4",
                {.packed_x = packed,
                .transpose = true,
                .rule = ScaleRule::rceil,
                .rounding = stochastic,
                .rotation = rotation}},
           Case{"nvfp4, rows, 4/6 scales", "nvfp4", {.x = x, .rule = ScaleRule::four_over_six}},
           Case{"nvfp4, transposed, rotated, stochastic",
                "nvfp4",
                {.x = x, .transpose = true, .rounding = stochastic, .rotation = rotation}},
           Case{"mxint8, rows", "mxint8", {.x = x}},
           Case{"mxint8, transposed", "mxint8", {.x = x, .transpose = true}},
       }) {
    const int64_t mark = memory.mark();
    kernels::Quantize args = c.args;
    args.y = make_packed(block_format(c.format), rows, cols, std::bind_front(&Arena::alloc, &memory));
    kernels::quantize(queue, args);
    const double seconds = best_replayed_seconds(queue, rounds, [&] { kernels::quantize(queue, args); });
    const double read = c.args.x.defined() ? static_cast<double>(x.bytes())
                                           : static_cast<double>(packed_bytes(packed.format, rows, cols)),
                 written = static_cast<double>(packed_bytes(args.y.format, rows, cols));
    fmt::print("  {:<52}{:>12.2f}{:>10.2f}\n", c.words, static_cast<double>(rows * cols) / seconds / 1e9,
               (read + written) / seconds / copy);
    memory.rewind(mark);
  }
  if (queue.device.kind != DeviceKind::cuda) return;  // the CPU has no use for what follows
  // What an FP8 product does to its operands first.
  const kernels::E4m3Image image{.codes = memory.alloc({rows, cols}, DType::u8),
                                 .scales = memory.alloc({rows}, DType::f32),
                                 .wide = memory.alloc({rows}, DType::i32),
                                 .x = packed};
  const double seconds = best_replayed_seconds(queue, rounds, [&] { kernels::e4m3_image(queue, image); });
  const double moved = static_cast<double>(packed_bytes(packed.format, rows, cols) + image.codes.bytes());
  fmt::print("  {:<52}{:>12.2f}{:>10.2f}\n", "mxfp4 to E4M3, rows",
             static_cast<double>(rows * cols) / seconds / 1e9, moved / seconds / copy);
}

}  // namespace osprey::bench
