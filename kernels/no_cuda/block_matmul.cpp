#include "kernels/block_matmul.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {

int64_t block_pack_bytes(std::span<const Packed>) { return 0; }
void block_pack(const Queue&, const kernels::BlockPack&) { absent("block_pack"); }
void block_matmul(const Queue&, const kernels::BlockMatmul&) { absent("block_matmul"); }

}  // namespace osprey::cuda
