#include "framework/parallel/agree.h"

namespace osprey {

std::vector<std::string> agree(Communicator& comm, const std::function<std::string()>& work) {
  std::string mine;  // 'k' and the answer, or 'e' and the error
  try {
    mine = "k" + work();
  } catch (const std::exception& e) {
    mine = std::string("e") + e.what();
  }
  std::vector<std::string> all = comm.gather_strings(mine);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    require(!all[rank].empty(), "agree", "rank {} sent nothing", rank);
    if (all[rank][0] == 'e')
      throw AgreedError((all.size() == 1 ? "" : fmt::format("[rank {}] ", rank)) + all[rank].substr(1));
    all[rank].erase(0, 1);
  }
  return all;
}

}  // namespace osprey
