#include "launch/bench/block_bench.h"

#include <fmt/format.h>

#include <functional>

#include "kernels/block_matmul.h"
#include "kernels/matmul.h"
#include "kernels/packed_linear.h"
#include "kernels/quantize.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/measure.h"

namespace osprey::bench {

namespace {

/// y = a b^T in bf16 and in a pair of formats, of the same numbers.
struct Product {
  Product(const Queue& queue, int64_t m, int64_t n, int64_t k, const char* a_format, const char* b_format)
      : memory("bench", queue.device, 8 * (m * k + n * k) + 2 * m * n + (1 << 20)),
        x(random_tensor(queue, memory, {m, k}, DType::bf16, 1)),
        w(random_tensor(queue, memory, {n, k}, DType::bf16, 1)),
        y(memory.alloc({m, n}, DType::bf16)),
        a(make_packed(block_format(a_format), m, k, std::bind_front(&Arena::alloc, &memory))),
        b(make_packed(block_format(b_format), n, k, std::bind_front(&Arena::alloc, &memory))) {
    kernels::quantize(queue, {.y = a, .x = x});
    kernels::quantize(queue, {.y = b, .x = w});
    if (const int64_t bytes = kernels::block_pack_bytes(queue, {&b, 1})) {
      pack = memory.alloc({bytes}, DType::u8);
      kernels::block_pack(queue, {.pack = pack, .b = {&b, 1}});
    }
  }
  double ours(const Queue& queue) {
    return best_seconds(queue, 1, [&] {
      kernels::block_matmul(queue, {.y = {y, false}, .a = a, .b = {&b, 1}, .pack = pack});
    });
  }
  /// With a quantized anew.
  double with_activations(const Queue& queue) {
    return best_seconds(queue, 1, [&] {
      kernels::quantize(queue, {.y = a, .x = x});
      kernels::block_matmul(queue, {.y = {y, false}, .a = a, .b = {&b, 1}, .pack = pack});
    });
  }
  /// GFLOP/s of one engine, of the library, and of the engine with a quantized anew, and with both.
  struct Rates {
    double engine, library, with_a, with_both;
  };
  Rates rates(const Queue& queue, std::string_view engine, int rounds) {
    const double flops = 2.0 * static_cast<double>(a.rows * b.rows * a.cols);
    const auto rate = [&](const auto& f) { return flops / best_replayed_seconds(queue, rounds, f) / 1e9; };
    const auto multiply = [&] { kernels::block_matmul_by(engine, queue, args()); };
    return {.engine = rate(multiply),
            .library = rate([&] {
              kernels::library_matmul(queue, {.c = y, .a = x, .b = w, .op_b = kernels::Op::transpose});
            }),
            .with_a = rate([&] {
              kernels::quantize(queue, {.y = a, .x = x});
              multiply();
            }),
            .with_both = rate([&] {
              kernels::quantize(queue, {.y = a, .x = x});
              kernels::quantize(queue, {.y = b, .x = w});
              multiply();
            })};
  }
  kernels::BlockMatmul args() const { return {.y = {y, false}, .a = a, .b = {&b, 1}, .pack = pack}; }
  /// With packed weights alone; few rows.
  double weights_alone(const Queue& queue) {
    return best_seconds(queue, 1, [&] {
      kernels::packed_linear(queue, {.y = y, .x = x, .weights = {&b, 1}});
    });
  }
  double library(const Queue& queue) {
    return best_seconds(queue, 1, [&] {
      kernels::library_matmul(queue, {.c = y, .a = x, .b = w, .op_b = kernels::Op::transpose});
    });
  }
  Arena memory;
  Tensor x, w, y, pack;
  Packed a, b;
};

constexpr int64_t most_of_definition = 1024;  // minutes beyond

}  // namespace

void bench_block_engines(const Queue& queue, std::span<const int64_t> sizes) {
  constexpr int rounds = 5;
  fmt::print(
      "packed operands, n = m = k, by engine, beside cuBLASLt's bf16 product; GFLOP/s, best of {} replays of 8; ratios to "
      "it, with operands packed already, and with a, or both, quantized anew\n",
      rounds);
  fmt::print("  {:<20}{:<12}{:>6}{:>10}{:>10}{:>8}{:>8}{:>8}\n", "formats", "engine", "m", "packed",
             "cuBLASLt", "ratio", "with a", "both");
  for (const auto& [a, b] : {std::pair{"mxfp4", "mxfp4"}, {"mxint8", "mxfp4"}, {"nvfp4", "nvfp4"}})
    for (const int64_t m : sizes) {
      Product p(queue, m, m, m, a, b);
      for (const std::string_view engine : kernels::block_matmul_engines(queue, p.args())) {
        if (engine == "definition" && m > most_of_definition) continue;
        const Product::Rates r = p.rates(queue, engine, rounds);
        fmt::print("  {:<20}{:<12}{:>6}{:>10.0f}{:>10.0f}{:>8.2f}{:>8.2f}{:>8.2f}\n",
                   fmt::format("{} x {}", a, b), engine, m, r.engine, r.library, r.engine / r.library,
                   r.with_a / r.library, r.with_both / r.library);
      }
    }
}

void bench_block_gemm(const Queue& queue) {
  constexpr int64_t sizes_of_gpu[] = {1024, 2048, 4096, 8192};
  if (queue.device.kind == DeviceKind::cuda) return bench_block_engines(queue, sizes_of_gpu);
  constexpr int rounds = 10, rounds_of_short = 60;
  fmt::print(
      "packed operands, n = m = k, b rearranged once, beside oneDNN's bf16 product; GFLOP/s, best of {} to {}, in "
      "turn\n",
      rounds, rounds_of_short);
  fmt::print("  {:<26}{:<12}{:>6}{:>10}{:>10}{:>8}{:>17}\n", "formats", "engine", "m", "packed", "oneDNN",
             "ratio", "quantizing a too");
  for (const auto& [a, b] : {std::pair{"mxfp4", "mxfp4"},
                             {"mxint8", "mxfp4"},
                             {"mxint8", "mxint8"},
                             {"mxfp8_e4m3", "mxfp8_e4m3"},
                             {"mxfp6_e2m3", "mxfp6_e2m3"}})
    for (const int64_t m : {1024, 2048, 4096}) {
      Product p(queue, m, m, m, a, b);
      const std::string_view engine = kernels::block_matmul_engines(queue, p.args())[0];
      if (engine == "definition" && m > most_of_definition) continue;
      double ours = 1e9, library = 1e9, with_a = 1e9;
      for (int round = 0; round < (m == 1024 ? rounds_of_short : rounds); ++round) {
        ours = std::min(ours, p.ours(queue));
        library = std::min(library, p.library(queue));
        with_a = std::min(with_a, p.with_activations(queue));
      }
      const double flops = 2.0 * static_cast<double>(m * m * m);
      fmt::print("  {:<26}{:<12}{:>6}{:>10.0f}{:>10.0f}{:>8.2f}{:>17.2f}\n", fmt::format("{} x {}", a, b),
                 engine, m, flops / ours / 1e9, flops / library / 1e9, library / ours, library / with_a);
    }
  const double copy = copy_rate(queue);
  fmt::print(
      "one row of x times (32768, 4096) packed weights: GB/s of them, beside the {:.1f} of a large copy\n",
      copy / 1e9);
  for (const char* format : {"mxfp4", "nvfp4", "mxint8"}) {
    Product p(queue, 1, 32768, 4096, format, format);
    double ours = 1e9, library = 1e9;
    for (int round = 0; round < rounds; ++round) {
      ours = std::min(ours, p.ours(queue));
      library = std::min(library, p.library(queue));
    }
    const auto bytes = static_cast<double>(packed_bytes(p.b.format, p.b.rows, p.b.cols));
    fmt::print("  {:<24}{:>9.1f}, {:.2f} of a copy; {:.2f} times as fast as oneDNN with bf16 weights\n",
               format, bytes / ours / 1e9, bytes / ours / copy, library / ours);
  }
  fmt::print(
      "bf16 rows of x times (4096, 4096) packed weights alone, without a format for x: GB/s of weights\n");
  for (const char* format : {"mxfp4", "nvfp4", "mxint8"})
    for (const int64_t m : {1, 2, 4, 8, 16}) {
      Product p(queue, m, 4096, 4096, format, format);
      double ours = 1e9, library = 1e9;
      for (int round = 0; round < rounds_of_short; ++round) {
        ours = std::min(ours, p.weights_alone(queue));
        library = std::min(library, p.library(queue));
      }
      const auto bytes = static_cast<double>(packed_bytes(p.b.format, p.b.rows, p.b.cols));
      fmt::print(
          "  {:<24}{:>9}{:>9.1f}, {:.2f} of a copy; {:.2f} times as fast as oneDNN with bf16 weights\n",
          format, m, bytes / ours / 1e9, bytes / ours / copy, library / ours);
    }
}

}  // namespace osprey::bench
