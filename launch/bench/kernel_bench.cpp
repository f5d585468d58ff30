#include "launch/bench/kernel_bench.h"

#include <fmt/format.h>

#include <cstdio>
#include <functional>

#include "framework/ops/attention.h"
#include "framework/ops/cross_entropy.h"
#include "framework/ops/linear.h"
#include "framework/ops/pointwise.h"
#include "framework/ops/rmsnorm.h"
#include "framework/ops/rope.h"
#include "framework/telemetry/gemm_rate.h"
#include "kernels/linear.h"
#include "kernels/pointwise.h"
#include "launch/bench/measure.h"

namespace osprey::bench {

namespace {

/// What is multiplied: the 34M bench model on a CPU; on a GPU OSP 1.4B, whose tensors do not fit into its
/// caches.
struct Shapes {
  int64_t rows, width, ffn, vocabulary, heads, sequence;
  const char* words;
  static Shapes of(const Queue& queue) {
    if (queue.device.kind == DeviceKind::cuda) return {16384, 2048, 5504, 49152, 16, 2048, "OSP 1.4B"};
    return {4096, 512, 1408, 8192, 8, 512, "the 34M bench model"};
  }
};

const char* library(const Queue& queue) {
  return queue.device.kind == DeviceKind::cuda ? "cuBLASLt" : "oneDNN";
}

std::string device_name(const Queue& queue) {
  return queue.device.kind == DeviceKind::cuda
             ? kernels::gpu_info(queue.device.index).name
             : fmt::format("{} thread{}", queue.threads, queue.threads == 1 ? "" : "s");
}

struct GemmCase {
  const char* name;
  int64_t out, in;
};

void bench_layer(const Queue& queue, int64_t rows, const GemmCase& c) {
  using kernels::Op;
  using kernels::PackFor;
  // x, y, dx and w in bf16, dw in f32, packs.
  Arena memory("bench", queue.device, 4 * rows * (2 * c.in + c.out) + 16 * c.in * c.out + (1 << 20));
  const Tensor x = random_tensor(queue, memory, {rows, c.in}, DType::bf16, 1),
               w = random_tensor(queue, memory, {c.out, c.in}, DType::bf16, 1);
  const Tensor y = random_tensor(queue, memory, {rows, c.out}, DType::bf16, 1),
               dx = memory.alloc({rows, c.in}, DType::bf16);
  const Tensor dw = memory.alloc({c.out, c.in}, DType::f32);
  Tensor packs[2];
  for (PackFor use : {PackFor::forward, PackFor::dgrad}) {
    const int64_t bytes = kernels::linear_pack_bytes(queue, {&w, 1}, use);
    if (bytes == 0) continue;
    Tensor& pack = packs[use == PackFor::dgrad];
    pack = memory.alloc({bytes / 2}, DType::bf16);
    kernels::linear_pack(queue, {.pack = pack, .weights = {&w, 1}, .use = use});
  }
  const Accum into{dw, false};
  const auto ours = [&](int product) {
    if (product == 0) kernels::linear_forward(queue, {.y = y, .x = x, .weights = {&w, 1}, .pack = packs[0]});
    if (product == 1)
      kernels::linear_dgrad(queue, {.dx = {dx, false}, .dy = y, .weights = {&w, 1}, .pack = packs[1]});
    if (product == 2)
      kernels::linear_wgrad(queue, {.dweights = {&into, 1}, .outs = {&c.out, 1}, .dy = y, .x = x});
  };
  const auto plain = [&](int product) {
    if (product == 0) kernels::library_matmul(queue, {.c = y, .a = x, .b = w, .op_b = Op::transpose});
    if (product == 1) kernels::library_matmul(queue, {.c = dx, .a = y, .b = w});
    if (product == 2) kernels::library_matmul(queue, {.c = dw, .a = y, .b = x, .op_a = Op::transpose});
  };
  const double flops = 2.0 * static_cast<double>(rows * c.out * c.in);
  const char* names[] = {"forward", "dgrad", "wgrad"};
  for (int product = 0; product < 3; ++product) {
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < 10; ++round) {
      best[0] = std::min(best[0], best_seconds(queue, 1, [&] { ours(product); }));
      best[1] = std::min(best[1], best_seconds(queue, 1, [&] { plain(product); }));
    }
    fmt::print("  {:<10}{:<9}{:>6} x {:<5}{:>10.0f}{:>10.0f}{:>8.2f}\n", c.name, names[product], c.out, c.in,
               flops / best[0] / 1e9, flops / best[1] / 1e9, best[1] / best[0]);
  }
}

/// What an op does at least, both directions together.
struct Work {
  double flops = 0;
  double bytes = 0;  // 0: bound by arithmetic
};

/// One op on its own tape; prints the best times of both directions.
class OpBench {
 public:
  OpBench(const Queue& queue, const Shapes& shapes, double gemm_rate, double bytes_rate)
      : queue_(queue),
        shapes_(shapes),
        gemm_rate_(gemm_rate),
        bytes_rate_(bytes_rate),
        inputs_("inputs", queue.device, int64_t{4} << 30),
        arena_("activations", queue.device, int64_t{4} << 30),
        pool_("gradients", queue.device),
        tape_(queue, arena_, pool_) {
    tape_.set_mode(Tape::Mode::train);
  }
  Parameter& parameter(const char* name, const Shape& shape) {
    return params_.add(name, -1, shape, {Init::Kind::normal, 0.02});
  }
  void ready() {
    params_.materialize(queue_.device, DType::bf16, ParamStore::Gradients::on);
    params_.initialize(queue_, 1);
  }
  Tensor activation(int64_t columns) {
    return random_tensor(queue_, inputs_, {shapes_.rows, columns}, DType::bf16, 1);
  }
  Tensor indices(int64_t below) {
    const Tensor t = inputs_.alloc({shapes_.rows}, DType::i32);
    write_from_host(queue_, t, [&](const Tensor& host) {
      for (int64_t i = 0; i < shapes_.rows; ++i) host.as<int32_t>()[i] = static_cast<int32_t>(i % below);
    });
    return t;
  }
  void run(const char* name, const Work& work, const std::function<Var(Tape&)>& op) {
    double forward = 1e9, backward = 1e9;
    Tensor dy;
    for (int round = 0; round < 8; ++round) {
      params_.begin_step();
      const double start = now_s();
      const Var y = op(tape_);
      kernels::synchronize(queue_);
      forward = std::min(forward, now_s() - start);
      const Tensor value = tape_.value(y);
      if (!dy.defined())
        dy = value.numel() == 1 ? one() : random_tensor(queue_, inputs_, value.shape, value.dtype, 1e-3f);
      const double middle = now_s();
      tape_.backward_from(y, dy);
      kernels::synchronize(queue_);
      backward = std::min(backward, now_s() - middle);
      tape_.reset();
    }
    const auto share = [&](double done, double rate) {
      return done > 0 ? fmt::format("{:.2f}", done / (forward + backward) / rate) : "";
    };
    fmt::print("  {:<26}{:>11.3f}{:>13.3f}{:>10}{:>10}\n", name, forward * 1e3, backward * 1e3,
               share(work.flops, gemm_rate_), share(work.bytes, bytes_rate_));
  }

 private:
  Tensor one() {
    const Tensor t = inputs_.alloc({1}, DType::f32);
    kernels::fill(queue_, {.y = t, .value = 1});
    return t;
  }

 public:
  Tensor loss_sums() { return inputs_.alloc({2}, DType::f64); }

 private:
  Queue queue_;
  Shapes shapes_;
  double gemm_rate_, bytes_rate_;
  ParamStore params_;
  Arena inputs_, arena_;
  Pool pool_;
  Tape tape_;
};

}  // namespace

double copy_rate(const Queue& queue) {
  const int64_t mib = queue.device.kind == DeviceKind::cuda ? 1024 : 128;
  Arena memory("bench", queue.device, mib << 21);
  const Tensor from = memory.alloc({mib, 1 << 19}, DType::bf16), to = memory.alloc(from.shape, DType::bf16);
  kernels::fill(queue, {.y = from, .value = 1});
  kernels::copy(queue, {.y = to, .x = from});
  kernels::synchronize(queue);
  return 2.0 * static_cast<double>(from.bytes()) /
         best_seconds(queue, 8, [&] { kernels::copy(queue, {.y = to, .x = from}); });
}

static double gemm_rate(const Queue& queue) {
  GemmYardstick yardstick(queue);
  double rate = 0;
  for (int i = 0; i < 8; ++i) rate = std::max(rate, yardstick.sample());
  return rate;
}

void bench_gemm(const Queue& queue) {
  const Shapes s = Shapes::of(queue);
  fmt::print("bench gemm: {} rows of {}, {}; {}'s large bf16 product: {:.0f} GFLOP/s; best of 10, in turn\n",
             s.rows, s.words, device_name(queue), library(queue), gemm_rate(queue) / 1e9);
  if (queue.device.kind == DeviceKind::cpu && !kernels::bf16_gemm_is_native())
    fmt::print("  this CPU multiplies bf16 in fp32\n");
  fmt::print("  {:<10}{:<9}{:>14}{:>10}{:>10}{:>8}\n", "layer", "product", "out x in", "linear",
             library(queue), "ratio");
  for (const GemmCase& c : {GemmCase{"qkv", 3 * s.width, s.width}, GemmCase{"o", s.width, s.width},
                            GemmCase{"gate_up", 2 * s.ffn, s.width}, GemmCase{"down", s.width, s.ffn},
                            GemmCase{"head", s.vocabulary, s.width}})
    bench_layer(queue, s.rows, c);
}

void bench_ops(const Queue& queue) {
  const Shapes s = Shapes::of(queue);
  const double gemm = gemm_rate(queue), bytes = copy_rate(queue);
  fmt::print(
      "bench ops: {} rows of {}, {}; of GEMM: FLOP/s of both directions over {}'s {:.0f} GFLOP/s; of copy: bytes that must "
      "be read and written over the {:.1f} GB/s of a large copy\n",
      s.rows, s.words, device_name(queue), library(queue), gemm / 1e9, bytes / 1e9);
  fmt::print("  {:<26}{:>11}{:>13}{:>10}{:>10}\n", "op", "forward ms", "backward ms", "of GEMM", "of copy");
  OpBench b(queue, s, gemm, bytes);
  Parameter& norm = b.parameter("norm", {s.width});
  Parameter& embed = b.parameter("embed", {s.vocabulary, s.width});
  Parameter* qkv[] = {&b.parameter("q", {s.width, s.width}), &b.parameter("k", {s.width, s.width}),
                      &b.parameter("v", {s.width, s.width})};
  Parameter* gate_up[] = {&b.parameter("gate", {s.ffn, s.width}), &b.parameter("up", {s.ffn, s.width})};
  Parameter& down = b.parameter("down", {s.width, s.ffn});
  b.ready();
  const Tensor x = b.activation(s.width), other = b.activation(s.width), wide = b.activation(3 * s.width),
               pair = b.activation(2 * s.ffn), half = b.activation(s.ffn);
  const Tensor tokens = b.indices(s.vocabulary), positions = b.indices(s.sequence);
  const double n = static_cast<double>(s.rows), width = static_cast<double>(s.width),
               ffn = static_cast<double>(s.ffn), vocabulary = static_cast<double>(s.vocabulary),
               row = 2 * n * width;  // bytes of a bf16 activation
  const int64_t head_size = s.width / s.heads;
  b.run("rmsnorm", {.bytes = 5 * row}, [&](Tape& t) { return rmsnorm(t, t.source(x), t.leaf(norm), 1e-6f); });
  b.run("add + rmsnorm", {.bytes = 4 * row + 3 * row},
        [&](Tape& t) { return add_rmsnorm(t, t.source(x), t.source(other), t.leaf(norm), 1e-6f).normed; });
  b.run("embedding", {.bytes = 2 * row + row + 4 * vocabulary * width},
        [&](Tape& t) { return embedding(t, tokens, t.leaf(embed)); });
  b.run("add", {.bytes = 3 * row}, [&](Tape& t) { return add(t, t.source(x), t.source(other)); });
  b.run("swiglu", {.bytes = 2 * n * ffn * (3 + 5)}, [&](Tape& t) { return swiglu(t, t.source(pair)); });
  b.run("rope", {.bytes = 4 * row + 4 * row}, [&](Tape& t) {
    return rope(t, t.source(wide),
                {.heads = s.heads, .kv_heads = s.heads, .head_size = head_size, .positions = positions}, {},
                {});
  });
  b.run("attention, causal", {.flops = 6 * n * static_cast<double>(s.sequence) * width}, [&](Tape& t) {
    return attention(
        t, t.source(wide),
        {.batch = s.rows / s.sequence, .heads = s.heads, .kv_heads = s.heads, .head_size = head_size}, {},
        {});
  });
  b.run("linear qkv", {.flops = 6 * n * width * 3 * width},
        [&](Tape& t) { return linear(t, t.source(x), qkv); });
  b.run("linear gate_up", {.flops = 6 * n * width * 2 * ffn},
        [&](Tape& t) { return linear(t, t.source(x), gate_up); });
  b.run("linear down", {.flops = 6 * n * width * ffn},
        [&](Tape& t) { return linear(t, t.source(half), down); });
  const Tensor sums = b.loss_sums();
  b.run("cross_entropy (in forward)", {.flops = 6 * n * width * vocabulary}, [&](Tape& t) {
    return cross_entropy(t, t.source(x), embed, tokens, {.grad_scale = {}, .sums = sums});
  });
}

}  // namespace osprey::bench
