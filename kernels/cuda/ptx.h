#pragma once
// What CUDA C++ cannot say without PTX or a language extension, as functions. Tests replace this header,
// launch.h and cuda_runtime.h by ones that run kernels on the CPU (tests/support/executor); kernels include
// nothing else that would have to be replaced, and use of CUDA's own names only what the executor knows:
// threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync,
// __shfl_down_sync,
// __shfl_up_sync, __ballot_sync, __any_sync, __all_sync, atomicAdd (int, unsigned, unsigned long long,
// float), atomicMax (int, unsigned), __threadfence, __trap, __ldg, __popc, __ffs, __clz, __float_as_uint and
// its kin, __expf, __logf,
// __fdividef, rsqrtf, min, max, int2, int4, uint2, uint4, float2, float4 with make_..., and the functions of
// <cmath>.

#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <cstdint>

#include "kernels/numerics/bf16.h"

namespace osprey::cuda {

/// Ranges that Nsight shows around what the host puts on streams.
inline void push_range(const char* name) { nvtxRangePushA(name); }
inline void pop_range() { nvtxRangePop(); }

/// The block's dynamic shared memory seen as a T. Launch with shared_bytes >= sizeof(T). It starts undefined.
template <class T>
__device__ __forceinline__ T& block_shared() {
  extern __shared__ __align__(128) unsigned char osprey_dynamic_shared[];
  return *reinterpret_cast<T*>(osprey_dynamic_shared);
}

/// Two floats rounded to nearest even, `low` in the low half.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// Loads past L1 for data that is read once; T has 4, 8 or 16 bytes.
template <class T>
__device__ __forceinline__ T load_streaming(const T* p) {
  return __ldcs(p);
}
/// Stores that are not expected to be read soon.
template <class T>
__device__ __forceinline__ void store_streaming(T* p, const T& v) {
  __stcs(p, v);
}

/// 2^x, relative error about 2^-22.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Starts copying 16 bytes from global to shared memory; both addresses are multiples of 16. With `valid`
/// false nothing is read and the destination becomes zero.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid = true) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
/// Closes this thread's group of copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `Pending` of this thread's newest groups are unfinished. Other threads see the data
/// after a __syncthreads() that follows.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix
/// l / 8 (16 bytes, 16-byte aligned) and receives, of matrix i in r[i], elements 2 (l % 4) and 2 (l % 4) + 1
/// of row l / 4. All 32 lanes take part.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
/// The same with every matrix transposed: r[i] holds elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

/// d += a b for one warp: a (16, 16) row-major bf16, b (16, 8) column-major bf16, d (16, 8) f32.
/// Lane l, with g = l / 4 and t = l % 4, holds (two bf16 a register, lower column or row in the low half):
///   a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)
///   b[0] (rows 2t..2t+1, column g)  b[1] (rows 2t+8..2t+9, column g)
///   d[0], d[1] (g, 2t), (g, 2t+1)  d[2], d[3] (g+8, 2t), (g+8, 2t+1)
/// Numerics: products exact, sums in fp32 with the tensor core's own rounding.
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace osprey::cuda
