// The arrows of the house, held by a scan: kernels <- framework <- optim, models <- launch.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/support/paths.h"

namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

bool starts(const std::string& text, const Words& prefixes) {
  for (const std::string& prefix : prefixes)
    if (text.starts_with(prefix)) return true;
  return false;
}

/// What each folder may include of the house.
const std::map<std::string, Words> allowed = {
    {"kernels", {"kernels/"}},
    {"framework", {"kernels/", "framework/"}},
    {"optim", {"kernels/", "framework/", "optim/"}},
    {"models", {"kernels/core/", "framework/", "models/"}},
    {"launch", {"kernels/", "framework/", "optim/", "models/", "launch/"}},
};
/// Headers of others that only one place may see.
const std::vector<std::pair<Words, Words>> guarded = {
    {{"mpi.h"}, {"framework/parallel/mpi_comm.cpp"}},
    {{"yaml-cpp/"}, {"framework/config/yaml.cpp"}},
    {{"cuda", "cublas", "cudnn", "cooperative_groups", "mma.h"},
     {"kernels/cuda/", "framework/parallel/nccl_comm."}},
    {{"nccl"}, {"framework/parallel/nccl_comm."}},
};

/// Why `file` may not include `header`; empty when it may.
std::string violation(const std::string& file, const std::string& header) {
  const std::string folder = file.substr(0, file.find('/'));
  const std::string target = header.substr(0, header.find('/'));
  if (header.find("..") != std::string::npos) return "includes by a relative path";
  if (target == "tests") return "includes a test";
  if (allowed.contains(target) && !starts(header, allowed.at(folder))) return "goes against the arrows";
  for (const auto& [headers, places] : guarded)
    if (starts(header, headers) && !starts(file, places)) return "belongs in " + places[0] + " only";
  return "";
}

TEST(IncludeRules, NoFileIncludesAgainstTheArrows) {
  int scanned = 0;
  for (const auto& [folder, words] : allowed) {
    if (!fs::exists(fs::path(osprey::test::source_dir()) / folder)) continue;
    for (const auto& entry :
         fs::recursive_directory_iterator(fs::path(osprey::test::source_dir()) / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") continue;
      const std::string file = fs::relative(entry.path(), osprey::test::source_dir());
      std::ifstream in(entry.path());
      int number = 0;
      for (std::string line; std::getline(in, line);) {
        ++number;
        const size_t first = line.find_first_not_of(" \t");
        if (first == std::string::npos || line[first] != '#' || line.find("include") == std::string::npos)
          continue;
        const size_t open = line.find_first_of("\"<");
        if (open == std::string::npos) continue;
        const std::string header = line.substr(open + 1, line.find_first_of("\">", open + 1) - open - 1);
        EXPECT_EQ(violation(file, header), "") << file << ":" << number << ": " << header;
      }
      ++scanned;
    }
  }
  EXPECT_GT(scanned, 20) << "the scan saw no sources under " << osprey::test::source_dir();
}

TEST(IncludeRules, TheScanSeesWhatItShouldForbid) {
  EXPECT_NE(violation("kernels/matmul.h", "framework/tape/tape.h"), "");
  EXPECT_NE(violation("framework/train/trainer.cpp", "optim/adamw.h"), "");
  EXPECT_NE(violation("framework/train/trainer.cpp", "launch/recipe.h"), "");
  EXPECT_NE(violation("optim/muon.cpp", "models/layers/linear.h"), "");
  EXPECT_NE(violation("models/llama/llama.cpp", "kernels/rmsnorm.h"), "");
  EXPECT_NE(violation("models/llama/llama.cpp", "../kernels/core/tensor.h"), "");
  EXPECT_NE(violation("launch/main.cpp", "mpi.h"), "");
  EXPECT_NE(violation("framework/config/reader.cpp", "yaml-cpp/yaml.h"), "");
  EXPECT_NE(violation("kernels/rmsnorm.cpp", "cuda_runtime.h"), "");
  EXPECT_NE(violation("launch/main.cpp", "tests/support/fuzz.h"), "");
  EXPECT_EQ(violation("models/llama/llama.cpp", "kernels/core/tensor.h"), "");
  EXPECT_EQ(violation("framework/parallel/mpi_comm.cpp", "mpi.h"), "");
  EXPECT_EQ(violation("optim/muon.cpp", "kernels/matmul.h"), "");
  EXPECT_EQ(violation("launch/main.cpp", "vector"), "");
}

}  // namespace
