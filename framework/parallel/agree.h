#pragma once
// Work that may fail on one rank only, without leaving the others waiting.

#include <functional>
#include <string>
#include <vector>

#include "framework/parallel/communicator.h"
#include "kernels/core/check.h"

namespace osprey {

/// What agree() throws: every rank has the same one, so all may leave together.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Runs `work` on every rank and returns what each of them returned. For work without collectives: a rank
/// that fails on the way to one would leave its peers there. Collective.
/// Errors: AgreedError with the message of the first rank on which `work` failed, naming the rank where there
/// are several.
std::vector<std::string> agree(Communicator& comm, const std::function<std::string()>& work);

}  // namespace osprey
