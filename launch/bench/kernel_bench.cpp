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

constexpr int64_t rows = 4096, width = 512, ffn = 1408, vocabulary = 8192, heads = 8;

// Best of `rounds`: on a shared machine the median of short kernels measures the neighbours.
template <class F>
double best_seconds(const Queue& queue, int rounds, const F& f) {
  double best = 1e9;
  for (int i = 0; i < rounds; ++i) {
    const double start = now_s();
    f();
    kernels::synchronize(queue);
    best = std::min(best, now_s() - start);
  }
  return best;
}

struct GemmCase {
  const char* name;
  int64_t out, in;
};

void bench_layer(const Queue& queue, const GemmCase& c) {
  using kernels::Op;
  using kernels::PackFor;
  Arena memory("bench", queue.device, int64_t{256} << 20);
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
  const double flops = 2.0 * rows * static_cast<double>(c.out * c.in);
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

/// One op on its own tape; prints the best times of both directions.
class OpBench {
 public:
  OpBench(const Queue& queue, double gemm_rate)
      : queue_(queue),
        gemm_rate_(gemm_rate),
        inputs_("inputs", queue.device, int64_t{512} << 20),
        arena_("activations", queue.device, int64_t{1} << 30),
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
  Tensor activation(int64_t columns) { return random_tensor(queue_, inputs_, {rows, columns}, DType::bf16, 1); }
  Tensor indices(int64_t below) {
    const Tensor t = inputs_.alloc({rows}, DType::i32);
    write_from_host(queue_, t, [&](const Tensor& host) {
      for (int64_t i = 0; i < rows; ++i) host.as<int32_t>()[i] = static_cast<int32_t>(i % below);
    });
    return t;
  }
  void run(const char* name, double flops, const std::function<Var(Tape&)>& op) {
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
    const double share = flops / (forward + backward) / gemm_rate_;
    fmt::print("  {:<26}{:>11.2f}{:>13.2f}{:>10}\n", name, forward * 1e3, backward * 1e3,
               flops > 0 ? fmt::format("{:.2f}", share) : "");
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
  double gemm_rate_;
  ParamStore params_;
  Arena inputs_, arena_;
  Pool pool_;
  Tape tape_;
};

}  // namespace

void bench_gemm(const Queue& queue) {
  GemmYardstick yardstick(queue);
  double rate = 0;
  for (int i = 0; i < 8; ++i) rate = std::max(rate, yardstick.sample());
  fmt::print("bench gemm: {} thread{}; oneDNN 2048 x 2048 x 2048 bf16: {:.0f} GFLOP/s; best of 10, in turn\n",
             queue.threads, queue.threads == 1 ? "" : "s", rate / 1e9);
  if (!kernels::bf16_gemm_is_native()) fmt::print("  this CPU multiplies bf16 in fp32\n");
  fmt::print("  {:<10}{:<9}{:>14}{:>10}{:>10}{:>8}\n", "layer", "product", "out x in", "linear", "oneDNN",
             "ratio");
  for (const GemmCase& c :
       {GemmCase{"qkv", 3 * width, width}, GemmCase{"o", width, width}, GemmCase{"gate_up", 2 * ffn, width},
        GemmCase{"down", width, ffn}, GemmCase{"head", vocabulary, width}})
    bench_layer(queue, c);
}

void bench_ops(const Queue& queue) {
  GemmYardstick yardstick(queue);
  double rate = 0;
  for (int i = 0; i < 8; ++i) rate = std::max(rate, yardstick.sample());
  fmt::print(
      "bench ops: 4096 rows of the bench model, {} thread{}; of GEMM: FLOP/s of both directions over "
      "oneDNN's {:.0f} GFLOP/s\n",
      queue.threads, queue.threads == 1 ? "" : "s", rate / 1e9);
  fmt::print("  {:<26}{:>11}{:>13}{:>10}\n", "op", "forward ms", "backward ms", "of GEMM");
  OpBench b(queue, rate);
  Parameter& norm = b.parameter("norm", {width});
  Parameter& embed = b.parameter("embed", {vocabulary, width});
  Parameter* qkv[] = {&b.parameter("q", {width, width}), &b.parameter("k", {width, width}),
                      &b.parameter("v", {width, width})};
  Parameter* gate_up[] = {&b.parameter("gate", {ffn, width}), &b.parameter("up", {ffn, width})};
  Parameter& down = b.parameter("down", {width, ffn});
  b.ready();
  const Tensor x = b.activation(width), wide = b.activation(3 * width), pair = b.activation(2 * ffn),
               half = b.activation(ffn);
  const Tensor tokens = b.indices(vocabulary), positions = b.indices(512);
  const double n = rows;
  b.run("rmsnorm", 0, [&](Tape& t) { return rmsnorm(t, t.source(x), t.leaf(norm), 1e-6f); });
  b.run("embedding", 0, [&](Tape& t) { return embedding(t, tokens, t.leaf(embed)); });
  b.run("add", 0, [&](Tape& t) { return add(t, t.source(x), t.source(x)); });
  b.run("swiglu", 0, [&](Tape& t) { return swiglu(t, t.source(pair)); });
  b.run("rope", 0, [&](Tape& t) {
    return rope(t, t.source(wide),
                {.heads = heads, .kv_heads = heads, .head_size = width / heads, .positions = positions}, {},
                {});
  });
  b.run("attention, causal", 6 * n * 512 * width, [&](Tape& t) {
    return attention(t, t.source(wide),
                     {.batch = 8, .heads = heads, .kv_heads = heads, .head_size = width / heads}, {}, {});
  });
  b.run("linear qkv", 6 * n * width * 3 * width, [&](Tape& t) { return linear(t, t.source(x), qkv); });
  b.run("linear gate_up", 6 * n * width * 2 * ffn, [&](Tape& t) { return linear(t, t.source(x), gate_up); });
  b.run("linear down", 6 * n * width * ffn, [&](Tape& t) { return linear(t, t.source(half), down); });
  const Tensor sums = b.loss_sums();
  b.run("cross_entropy (in forward)", 6 * n * width * vocabulary, [&](Tape& t) {
    return cross_entropy(t, t.source(x), embed, tokens, {.grad_scale = {}, .sums = sums});
  });
}

}  // namespace osprey::bench
