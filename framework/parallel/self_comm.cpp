#include <cstdio>
#include <cstdlib>

#include "framework/parallel/collective.h"
#include "framework/parallel/communicator.h"

namespace osprey {
namespace {

class SelfComm final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string kind() const override { return "self"; }

  void all_reduce(Tensor data, DType wire) override {
    reduce_call(Collective::all_reduce, data, wire, data.device.kind);
  }
  void reduce_scatter(Tensor flat, std::span<const Piece> pieces, DType wire) override {
    pieces_call(Collective::reduce_scatter, flat, pieces, wire, 1, flat.device.kind);
  }
  void all_gather(Tensor flat, std::span<const Piece> pieces) override {
    pieces_call(Collective::all_gather, flat, pieces, flat.dtype, 1, flat.device.kind);
  }
  void broadcast(Tensor data, int root) override { broadcast_call(data, root, 1, data.device.kind); }
  void barrier() override {}
  void max(std::span<double>) override {}
  void sum(std::span<double>) override {}
  std::vector<std::string> gather_strings(const std::string& mine) override { return {mine}; }
  std::unique_ptr<Communicator> duplicate() override { return make_self_comm(); }
  void abort(const std::string& why) override {
    std::fputs(fmt::format("[rank 0] {}\n", why).c_str(), stderr);
    std::fflush(nullptr);
    std::_Exit(1);
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_comm() { return std::make_unique<SelfComm>(); }

}  // namespace osprey
