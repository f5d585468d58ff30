#pragma once
// Runs kernels written for a GPU on the CPU: the threads of a block are fibers that take turns in a shuffled
// order. See README.md.

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>

#include "tests/support/executor/types.h"

using cudaStream_t = struct CUstream_st*;

namespace osprey::executor {

/// How many GPUs the process sees; 1 at first, 4 at most.
void set_device_count(int count);
/// Which order threads take turns in. At first: environment OSPREY_EXECUTOR_SEED, or 1. Launches that this
/// host thread makes from now on are counted from 0 again, so equal seeds give equal orders.
void set_seed(uint64_t seed);
uint64_t seed();

/// Does `work` on the stream's GPU, whose memory is accessible meanwhile: at once, or where the stream
/// captures, at every launch of the graph. What stands in for a library (cuBLASLt, NCCL) goes through here.
/// Errors: throws what CUDA would report, or what `work` throws.
void run_on_device(cudaStream_t stream, std::function<void()> work);

/// One kernel and the blocks it is launched with.
struct Launch {
  std::string op;
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  std::function<void()> thread;  // what each thread does
};
/// Errors: throws what a GPU would refuse: too many threads, blocks or bytes.
void check_launch(const Launch& launch);
/// Runs all blocks, one after another in a shuffled order. Errors: throws, naming op, block and thread, when
/// a thread fails or waits for others that never come.
void run_blocks(const Launch& launch);
/// check_launch(), and run_blocks() by run_on_device(). Errors: also when the stream is not of the current
/// device.
void launch(cudaStream_t stream, Launch launch);

/// Throws when the bytes of a kernel's argument hold a pointer into host memory that is not pinned.
void check_argument(const std::string& op, int index, const void* argument, size_t bytes);

// For device code.

/// Ends the running thread, and with it the launch. Errors: throws, naming op, block and thread.
[[noreturn]] void fail_thread(const std::string& what);

/// The block's shared memory. Errors: throws unless it holds `bytes`.
void* shared_memory(size_t bytes);
/// Throws unless [p, p + bytes) lies in the block's shared memory and p is a multiple of `alignment`.
void require_shared(const void* p, size_t bytes, size_t alignment, const char* what);

/// Returns when all threads of the block are here.
void wait_for_block(std::source_location at);

/// Sees the operands that the lanes of `mask` came with, and writes results to them.
using Exchange = void (*)(void* const (&operands)[32], unsigned mask);
/// Returns when all lanes of `mask` are here with their operands, after `exchange`, called once, saw them.
void wait_for_lanes(unsigned mask, const char* what, std::source_location at, void* operand,
                    Exchange exchange);
/// Number of the running thread in its warp.
int lane();

/// Copies that happen when they are waited for, see copy_async_16() of kernels/cuda/ptx.h.
void copy_later(void* shared, const void* global, bool valid);
void close_copies();
void wait_for_copies(int pending);

}  // namespace osprey::executor
