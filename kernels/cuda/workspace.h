#pragma once
// What a stream holds of a GPU's memory. Without CUDA headers: plans are made where there are none.

#include <cstdint>

namespace osprey::cuda {

/// Working memory of the op that runs. cuDNN's deterministic backward on Hopper writes 2 bytes a score: this
/// is a sequence of 2048 with 16 heads, twice.
inline constexpr int64_t stream_scratch_bytes = int64_t{256} << 20;
/// For GEMM libraries.
inline constexpr int64_t stream_gemm_bytes = int64_t{32} << 20;

}  // namespace osprey::cuda
