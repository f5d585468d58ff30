#include "framework/files/file.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "kernels/core/check.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

TEST(OutputFile, RecordsTheSizeAndTheHashOfWhatWasWritten) {
  test::TempDir dir;
  const FileRecord record = write_file(dir / "a", "123456789");
  EXPECT_EQ(record.name, "a");
  EXPECT_EQ(record.size_bytes, 9);
  EXPECT_EQ(record.crc32, 0xcbf43926u);  // the check value of this CRC
  EXPECT_EQ(hash_file(dir / "a"), record);
  EXPECT_EQ(copy_file_durably(dir / "a", dir / "b").crc32, record.crc32);
  EXPECT_EQ(read_file(dir / "b", 9), "123456789");
}

TEST(OutputFile, NeverOverwritesAndNamesWhatIsMissing) {
  test::TempDir dir;
  write_file(dir / "a", "x");
  EXPECT_THROW(OutputFile(dir / "a"), Error);
  for (const auto& call : {std::function<void()>([&] { hash_file(dir / "gone"); }),
                           std::function<void()>([&] { read_file(dir / "gone", 10); }),
                           std::function<void()>([&] { write_file(dir / "gone" / "a", "x"); })})
    try {
      call();
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("gone"), std::string::npos) << e.what();
    }
  EXPECT_THROW(read_file(dir.path(), 10), Error);
  write_file(dir / "long", "12345678901");
  EXPECT_THROW(read_file(dir / "long", 10), Error);
}

TEST(PlainFileName, RefusesWhateverLeavesTheDirectory) {
  for (const char* good : {"a", "model-00001-of-00002.safetensors", "...", ".hidden"})
    EXPECT_TRUE(is_plain_file_name(good));
  for (const std::string& bad : {std::string(""), std::string("."), std::string(".."), std::string("a/b"),
                                 std::string("/a"), std::string("a\0b", 3)})
    EXPECT_FALSE(is_plain_file_name(bad)) << bad;
}

TEST(File, ReplaceLeavesTheOldOrTheNewAndNothingElse) {
  test::TempDir dir;
  const auto path = dir / "summary.json";
  replace_file(path, "one");
  write_file(dir / "summary.json.partial", "of a process that was killed");
  replace_file(path, "two");
  EXPECT_EQ(read_file(path, 10), "two");
  EXPECT_THROW(replace_file(dir / "nowhere" / "x", "three"), Error);
  std::filesystem::create_directory(dir / "taken");
  EXPECT_THROW(replace_file(dir / "taken", "four"), Error);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 2) << "no .partial is left";
}

TEST(File, AppendedRecordsAreThereWhenWriteReturns) {
  test::TempDir dir;
  for (int i = 1; i <= 2; ++i) {
    AppendFile log(dir / "log");
    log.write("a line\n");
    EXPECT_EQ(read_file(dir / "log", 100).size(), static_cast<size_t>(7 * i));
  }
}

}  // namespace
}  // namespace osprey
