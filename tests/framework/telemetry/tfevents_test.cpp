#include "framework/telemetry/tfevents.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <vector>

#include "kernels/core/check.h"

#include "tests/support/paths.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

std::string hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<uint8_t>(c));
  return out;
}

std::string read(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(TfEvents, CrcMatchesThePublishedCheckValue) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(TfEvents, TheVersionRecordHasTheKnownBytes) {
  EXPECT_EQ(hex(tfrecord(tf_version_event(1.7e9))),
            "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d");
}

TEST(TfEvents, AScalarRecordHasTheKnownBytes) {
  const std::vector<TfScalar> scalars{{"train/loss", 2.5}};
  EXPECT_EQ(hex(tfrecord(tf_scalar_event(1.7e9 + 1, 7, scalars))),
            "200000000000000029eda9500900004040fc54d94110072a130a110a0a747261696e2f6c6f73731500002040"
            "55c9c66f");
}

TEST(TfEvents, ALongFileEqualsTheGoldenOneThatTensorBoardReadBack) {
  // tests/framework/telemetry/golden.tfevents was written by this code at fixed wall times; TensorBoard 2.21
  // read every value of it (docs/run-directory.md tells how to repeat that).
  std::string bytes = tfrecord(tf_version_event(1.7e9)) + tfrecord(tf_start_event(1.7e9 + 0.5, 3));
  for (int64_t step = 3; step < 6; ++step) {
    const double x = static_cast<double>(step);
    const std::vector<TfScalar> scalars{
        {"train/loss", 10.0 / x},
        {"train/learning_rate", 1e-4 * x},
        {"outliers_osp/block_input/layer_00/kurtosis", 1e6 * x},
        {"name \xC3\xA9 with a tag that is longer than one hundred and twenty-eight bytes "
         "so that its length needs a varint of two bytes, as does the summary that holds it",
         -x}};
    bytes += tfrecord(tf_scalar_event(1.7e9 + x, step * 1000, scalars));
  }
  const std::vector<TfScalar> nan{{"train/loss", std::numeric_limits<double>::quiet_NaN()}};
  bytes += tfrecord(tf_scalar_event(1.7e9 + 9, 300000000000, nan));
  const fs::path golden = fs::path(osprey::test::source_dir()) / "tests/framework/telemetry/golden.tfevents";
  if (std::getenv("OSPREY_WRITE_GOLDEN")) std::ofstream(golden, std::ios::binary) << bytes;
  EXPECT_EQ(hex(read(golden)), hex(bytes));
}

TEST(TfEvents, TheWriterAppendsWholeRecordsAndMarksAResume) {
  const fs::path dir = fs::path(testing::TempDir()) / "osprey_tfevents";
  fs::remove_all(dir);
  const std::vector<TfScalar> scalars{{"a", 1}};
  fs::path first;
  {
    TfEventsWriter writer(dir, 0);
    first = writer.path();
    writer.scalars(1, scalars);
    writer.scalars(2, {});
  }
  TfEventsWriter resumed(dir, 5);
  EXPECT_NE(first, resumed.path());
  // version 40 bytes; scalar: 16 frame + 9 wall + 2 step + 12 summary
  EXPECT_EQ(fs::file_size(first), 40u + 16u + 9u + 2u + 12u);
  EXPECT_EQ(fs::file_size(resumed.path()), 40u + 16u + 9u + 2u + 4u);
  EXPECT_EQ(resumed.path().filename().string().rfind("events.out.tfevents.", 0), 0u);
}

TEST(TfEvents, ADirectoryThatCannotBeMadeIsNamed) {
  const fs::path file = fs::path(testing::TempDir()) / "osprey_not_a_dir";
  std::ofstream(file) << "x";
  try {
    TfEventsWriter writer(file / "tensorboard", 0);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("osprey_not_a_dir"), std::string::npos);
  }
}

}  // namespace
}  // namespace osprey
