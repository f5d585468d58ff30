#include "kernels/block_matmul.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {

int64_t block_pack_bytes(std::span<const Packed>) { return 0; }
void block_pack(const Queue&, const kernels::BlockPack&) { absent("block_pack"); }
void block_matmul(const Queue&, const kernels::BlockMatmul&) { absent("block_matmul"); }
std::vector<std::string_view> block_matmul_engines(const Queue&, const kernels::BlockMatmul&) {
  absent("block_matmul");
}
void block_matmul_by(std::string_view, const Queue&, const kernels::BlockMatmul&) { absent("block_matmul"); }

}  // namespace osprey::cuda
