// NcclComm on the GPUs that the executor plays: ranks are threads, each with a GPU of its own.

#include "framework/parallel/nccl_comm.h"

#include <atomic>

#include "framework/clock.h"
#include "framework/parallel/reducer.h"
#include "framework/parallel/thread_comm.h"
#include "tests/framework/parallel/comm_cases.h"
#include "tests/framework/parallel/on_device.h"
#include "tests/support/executor/executor.h"
#include "tests/support/executor/nccl.h"

namespace osprey {
namespace {

using comm_cases::contribution;
using comm_cases::contributions;
using comm_cases::error_of;
using comm_cases::expect_words;
using comm_cases::OnDevice;

/// Little scratch, so that sums take many windows.
const NcclOptions windowed{.timeout_s = 120, .scratch_bytes = 1 << 20};

Device gpu(int rank) { return {DeviceKind::cuda, rank}; }

/// A thread for each rank, with a communicator over the others' and memory on GPU `rank`.
void run_gpu_ranks(int ranks, const NcclOptions& options,
                   const std::function<void(std::unique_ptr<Communicator>, Communicator&)>& body) {
  executor::set_device_count(4);
  run_thread_ranks(ranks,
                   [&](Communicator& host) { body(make_nccl_comm(host, gpu(host.rank()), options), host); });
  executor::set_device_count(1);
}

/// Device memory with a stream of its own.
struct Gpu {
  explicit Gpu(int rank)
      : device(gpu(rank)), stream(kernels::open_stream(device, kernels::StreamUse::transfer)) {
    queue = {.device = device, .stream = stream.get()};
  }
  ~Gpu() {
    for (const Tensor& t : made) kernels::release(device, t.data, t.bytes());
  }
  template <class T>
  Tensor upload(const std::vector<T>& v) {
    const Tensor t = make_tensor(kernels::allocate(device, std::ssize(v) * sizeof(T), "a test"),
                                 {std::ssize(v)}, DTypeOf<T>::value, device);
    kernels::upload(queue, t, v.data());
    made.push_back(t);
    return t;
  }
  template <class T>
  std::vector<T> download(const Tensor& t) {
    std::vector<T> v(static_cast<size_t>(t.numel()));
    kernels::download(queue, v.data(), t);
    return v;
  }
  Device device;
  kernels::StreamHandle stream;
  Queue queue;
  std::vector<Tensor> made;
};

class NcclDoes : public testing::TestWithParam<std::tuple<comm_cases::Case, int>> {};
INSTANTIATE_TEST_SUITE_P(All, NcclDoes,
                         testing::Combine(testing::ValuesIn(comm_cases::kCases), testing::Values(1, 2, 4)),
                         [](const auto& p) {
                           return fmt::format("{}{}", std::get<0>(p.param).name, std::get<1>(p.param));
                         });

TEST_P(NcclDoes, OnTensorsOfItsGpu) {
  const auto [test, ranks] = GetParam();
  run_gpu_ranks(ranks, windowed, [&, run = test.run](std::unique_ptr<Communicator> comm, Communicator& host) {
    OnDevice on_device(std::move(comm), gpu(host.rank()));
    run(on_device);
  });
}

TEST_P(NcclDoes, OnTensorsOfTheHost) {
  const auto [test, ranks] = GetParam();
  run_gpu_ranks(ranks, windowed,
                [&, run = test.run](std::unique_ptr<Communicator> comm, Communicator&) { run(*comm); });
}

template <class T>
void expect_same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

TEST(NcclComm, SumsAreThoseOfTheHostBitForBit) {
  run_gpu_ranks(3, windowed, [](std::unique_ptr<Communicator> comm, Communicator& host) {
    Gpu g(host.rank());
    const int64_t n = 123'457;
    auto v = contributions(host.rank(), n);
    for (int64_t i = 0; i < n; i += 97)
      v[static_cast<size_t>(i)] = std::ldexp(1.0f, static_cast<int>(i % 280) - 149);
    v[5] = std::numeric_limits<float>::infinity();
    v[6] = -0.0f;
    const auto pieces = comm_cases::odd_pieces(3, n);
    for (const DType wire : {DType::f32, DType::bf16}) {
      auto all = v, scattered = v;
      const Tensor on_gpu = g.upload(v), scattered_on_gpu = g.upload(v);
      comm->start_after(g.queue);
      comm->all_reduce(on_gpu, wire);
      comm->reduce_scatter(scattered_on_gpu, pieces, wire);
      comm->all_gather(scattered_on_gpu, pieces);
      comm->finish_before(g.queue);
      host.all_reduce(comm_cases::tensor_of(all), wire);
      host.reduce_scatter(comm_cases::tensor_of(scattered), pieces, wire);
      host.all_gather(comm_cases::tensor_of(scattered), pieces);
      expect_same_bits(g.download<float>(on_gpu), all);
      const auto got = g.download<float>(scattered_on_gpu);
      for (const Piece& p : pieces)
        EXPECT_EQ(0, std::memcmp(&got[static_cast<size_t>(p.begin)], &scattered[static_cast<size_t>(p.begin)],
                                 static_cast<size_t>(p.end - p.begin) * 4));
    }
  });
}

TEST(NcclComm, RefusesTensorsOfAnotherGpuAndAHostAsDevice) {
  run_gpu_ranks(1, windowed, [](std::unique_ptr<Communicator> comm, Communicator& host) {
    Gpu other(1);
    const Tensor t = other.upload(std::vector<float>(4));
    expect_words(error_of([&] { comm->all_reduce(t, DType::f32); }), {"[all_reduce]", "GPU 0", "cuda 1"});
    expect_words(error_of([&] { make_nccl_comm(host, {}); }), {"[nccl]", "cpu"});
  });
}

TEST(NcclComm, TwoRanksOnOneGpuAreToldSo) {
  expect_words(error_of([&] {
                 run_thread_ranks(2, [](Communicator& host) { make_nccl_comm(host, gpu(0), windowed); });
               }),
               {"[nccl] connecting the ranks failed", "Duplicate GPU", "a GPU of its own"});
}

TEST(NcclComm, APeerThatDisappearsIsNamedInTime) {
  const double start = now_s();
  std::string seen;
  run_gpu_ranks(2, {.timeout_s = 0.5, .scratch_bytes = 1 << 20},
                [&](std::unique_ptr<Communicator> comm, Communicator& host) {
                  Gpu g(host.rank());
                  const Tensor t = g.upload(contributions(host.rank(), 1000));
                  comm->all_reduce(t, DType::f32);
                  comm->finish_before(g.queue);
                  if (host.rank() == 1) return;  // in the middle of a step that rank 0 knows
                  seen = error_of([&] {
                    comm->all_reduce(t, DType::f32);
                    comm->finish_before(g.queue);
                  });
                  EXPECT_EQ(error_of([&] { comm->barrier(); }), seen);
                });
  expect_words(seen, {"[nccl] call 2: all_reduce of 1000 f32 (4000 bytes) has not ended", "rank 1 left",
                      "load average"});
  EXPECT_LT(now_s() - start, 20);
}

TEST(NcclComm, KnownCallsMixedUpEndWithAnErrorThatNamesBoth) {
  std::vector<std::string> seen(2);
  run_gpu_ranks(2, {.timeout_s = 0.5, .scratch_bytes = 1 << 20},
                [&](std::unique_ptr<Communicator> comm, Communicator& host) {
                  Gpu g(host.rank());
                  const Tensor a = g.upload(contributions(0, 1000)), b = g.upload(contributions(0, 2000));
                  for (const Tensor& t : {a, b}) {
                    comm->all_reduce(t, DType::f32);
                    comm->finish_before(g.queue);
                  }
                  seen[static_cast<size_t>(host.rank())] = error_of([&] {
                    comm->all_reduce(host.rank() == 0 ? a : b, DType::f32);
                    comm->finish_before(g.queue);
                  });
                });
  expect_words(seen[0], {"all_reduce of 1000 f32", "rank 1: ", "all_reduce of 2000 f32"});
  expect_words(seen[1], {"all_reduce of 2000 f32", "rank 0: ", "all_reduce of 1000 f32"});
}

TEST(NcclComm, KnownCallsThatWereQueuedDifferentlyAreFoundWhenTheyAreWaitedFor) {
  run_gpu_ranks(2, windowed, [](std::unique_ptr<Communicator> comm, Communicator& host) {
    Gpu g(host.rank());
    const Tensor none = g.upload(std::vector<float>());  // for which NCCL is not asked, so that no rank waits
    const auto reduce = [&] { comm->all_reduce(none, DType::f32); };
    const auto gather = [&] { comm->all_gather(none, {}); };
    reduce();
    comm->finish_before(g.queue);
    gather();
    comm->finish_before(g.queue);
    host.rank() == 0 ? reduce() : gather();
    expect_words(error_of([&] { comm->finish_before(g.queue); }),
                 {"[all_gather] ranks disagree: rank 1 is at {call 4: all_gather of 0 f32}",
                  "rank 0 is at {call 4: all_reduce of 0 f32}"});
    expect_words(error_of(reduce), {"cannot be used any more"});
  });
}

TEST(NcclComm, WhatNcclReportsEndsTheJob) {
  std::string seen;
  error_of([&] {
    run_gpu_ranks(2, {.timeout_s = 2, .scratch_bytes = 1 << 20},
                  [&](std::unique_ptr<Communicator> comm, Communicator& host) {
                    if (host.rank() == 0) executor::set_nccl_health(executor::NcclHealth::remote_error);
                    const double start = now_s();
                    std::string error;
                    while (error.empty() && now_s() - start < 20) error = error_of([&] { comm->barrier(); });
                    if (host.rank() == 0) seen = error;
                  });
  });
  executor::set_device_count(1);
  executor::set_nccl_health(executor::NcclHealth::well);
  EXPECT_NE(seen.find("remote process exited"), std::string::npos) << seen;
}

/// Two buckets on the host and the same on a GPU, with gradients of which one was not written.
struct Buckets {
  std::vector<std::unique_ptr<Parameter>> parameters;
  std::vector<ShardParameter> shards;
  std::vector<std::vector<float>> grads, values;

  explicit Buckets(int rank) {
    const int64_t sizes[2][3] = {{48 * 48, 1, 501 * 16}, {64 * 48, 33, 48 * 48}};
    for (size_t b = 0; b < 2; ++b) {
      int64_t offset = 0;
      for (const int64_t n : sizes[b]) {
        shards.push_back({fmt::format("p{}.{}", b, offset),
                          b,
                          offset,
                          {n},
                          n % 48 == 0 ? ShardGranularity::matrix : ShardGranularity::element,
                          1.0});
        offset += (n + 31) / 32 * 32;
      }
      grads.push_back(contributions(rank, offset));
      values.push_back(contributions(rank + 7, offset));
    }
  }

  std::vector<ReduceBucket> over(const std::vector<Tensor>& g, const std::vector<Tensor>& v) {
    std::vector<ReduceBucket> all;
    for (size_t b = 0; b < 2; ++b)
      all.push_back({.layer = static_cast<int>(b), .grads = g[b], .values = v[b]});
    for (const ShardParameter& s : shards) {
      auto p = std::make_unique<Parameter>();
      p->name = s.name;
      p->shape = s.shape;
      p->offset = s.offset;
      p->grad = g[s.bucket].columns(s.offset, s.offset + s.shape.numel()).view(s.shape);
      p->grad_written = s.shape.numel() != 33;
      all[s.bucket].params.push_back(p.get());
      parameters.push_back(std::move(p));
    }
    return all;
  }
};

TEST(NcclComm, TheReducerOnAGpuGivesTheBitsOfTheReducerOnTheHost) {
  for (const int64_t zero : {0, 1})
    for (const DType wire : {DType::f32, DType::bf16})
      run_gpu_ranks(4, windowed, [&](std::unique_ptr<Communicator> comm, Communicator& host) {
        Gpu g(host.rank());
        Buckets b(host.rank()), on_gpu(host.rank());
        ParallelSpec spec;
        spec.zero = zero;
        spec.reduce_dtype = wire;
        const ShardPlan plan = make_shard_plan(b.shards, 2, 4, spec);
        std::vector<Tensor> grads, values, gpu_grads, gpu_values;
        for (size_t i = 0; i < 2; ++i) {
          grads.push_back(comm_cases::tensor_of(b.grads[i]));
          values.push_back(comm_cases::tensor_of(b.values[i]));
          gpu_grads.push_back(g.upload(b.grads[i]));
          gpu_values.push_back(g.upload(b.values[i]));
        }
        Reducer there(host, Queue{}, plan, spec, b.over(grads, values));
        Reducer here(*comm, g.queue, plan, spec, on_gpu.over(gpu_grads, gpu_values));
        for (Reducer* r : {&there, &here}) {
          r->arm();
          r->after_backward(1);
          r->after_backward(0);
          r->wait_all();
          r->gather_all();
          r->wait_all();
        }
        for (size_t i = 0; i < 2; ++i) {
          const auto got = g.download<float>(gpu_grads[i]);
          for (const Piece& p : plan.buckets[i].reduce) {
            if (p.owner != host.rank()) continue;
            for (int64_t e = p.begin; e < p.end; ++e)
              ASSERT_EQ(got[static_cast<size_t>(e)], b.grads[i][static_cast<size_t>(e)]) << i << " " << e;
          }
          expect_same_bits(g.download<float>(gpu_values[i]), b.values[i]);
        }
        EXPECT_EQ(here.times().busy_ms, 0);
      });
}

}  // namespace
}  // namespace osprey
