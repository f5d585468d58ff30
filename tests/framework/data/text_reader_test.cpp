#include "framework/data/text_reader.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <vector>

#include "framework/data/byte_stream.h"
#include "framework/files/utf8.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using Documents = TextOptions::Documents;

std::string gzip(const std::string& text) {
  z_stream state{};
  deflateInit2(&state, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(text.size() + 1000, '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  deflate(&state, Z_FINISH);
  out.resize(state.total_out);
  deflateEnd(&state);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  ZSTD_CCtx* state = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(state, ZSTD_c_checksumFlag, 1);  // as the zstd program does
  out.resize(ZSTD_compress2(state, out.data(), out.size(), text.data(), text.size()));
  ZSTD_freeCCtx(state);
  return out;
}

class TextReaderTest : public testing::Test {
 protected:
  std::vector<std::string> read(const std::string& name, const std::string& bytes,
                                const TextOptions& options = {}) {
    const std::string path = (dir_ / name).string();
    spill(path, bytes);
    TextReader reader(path, options);
    std::vector<std::string> documents;
    for (std::string text; reader.next(text);) documents.push_back(text);
    skipped_ = reader.skipped();
    first_skipped_ = reader.first_skipped();
    return documents;
  }
  test::TempDir dir_;
  int64_t skipped_ = 0;
  std::string first_skipped_;
};

using Strings = std::vector<std::string>;

TEST_F(TextReaderTest, DocumentsAreCutAsAsked) {
  const std::string text =
      "\n\nOne \\One\\\n   first\n\n   second\n\n\nTwo\n   only\nThree\n  \n\tstill three\n\nFour";
  EXPECT_EQ(read("a.txt", text), (Strings{text.substr(2)}));
  EXPECT_EQ(
      read("a.txt", text, {.documents = Documents::entry}),
      (Strings{"One \\One\\\n   first\n\n   second", "Two\n   only\nThree\n  \n\tstill three", "Four"}));
  EXPECT_EQ(read("a.txt", text, {.documents = Documents::paragraph}),
            (Strings{"One \\One\\\n   first", "   second", "Two\n   only\nThree", "\tstill three", "Four"}));
  EXPECT_EQ(read("a.txt", "a\n\n b\nc", {.documents = Documents::line}), (Strings{"a", " b", "c"}));
  EXPECT_EQ(read("a.txt", "a\n--\nb--c\n--\n\n--\nd", {.separator = "\n--\n"}), (Strings{"a", "b--c", "d"}));
  EXPECT_EQ(read("a.txt", ""), Strings{});
  EXPECT_EQ(read("a.txt", " \n\n\t\n"), Strings{});
  EXPECT_EQ(read("a.txt", "\xef\xbb\xbfmark"), (Strings{"mark"}));
}

TEST_F(TextReaderTest, SeparatorsAreFoundAcrossReads) {
  // The chunk is 256 KiB; separators are put at every offset around its end.
  for (size_t before = (1 << 18) - 5; before <= (1 << 18) + 2; ++before) {
    const auto documents = read("a.txt", std::string(before, 'x') + "<<>>" + "tail", {.separator = "<<>>"});
    ASSERT_EQ(documents.size(), 2u) << before;
    EXPECT_EQ(documents[0].size(), before);
  }
}

TEST_F(TextReaderTest, JsonLinesGiveTheKeyAskedFor) {
  const std::string lines =
      "{\"text\": \"one\\ntwo\", \"id\": 1}\n\n{\"text\": \"\\u00e7\\ud83d\\udc1f\"}\r\n{\"text\": "
      "\"\"}\n";
  EXPECT_EQ(read("a.jsonl", lines), (Strings{"one\ntwo", "\xc3\xa7\xf0\x9f\x90\x9f"}));
  EXPECT_EQ(read("a.dat", lines, {.format = TextOptions::Format::jsonl}).size(), 2u);
  EXPECT_EQ(read("a.jsonl", "{\"body\": \"x\"}", {.text_key = "body"}), (Strings{"x"}));
}

TEST_F(TextReaderTest, CompressedFilesReadAsPlainOnes) {
  std::string text;
  for (int i = 0; i < 60000; ++i) text += "line " + std::to_string(i) + " of the same text\n";
  const auto plain = read("a.txt", text, {.documents = Documents::line});
  ASSERT_EQ(plain.size(), 60000u);
  const auto lines = TextOptions{.documents = Documents::line};
  EXPECT_EQ(read("a.txt.gz", gzip(text), lines), plain);
  EXPECT_EQ(read("a.dict.dz", gzip(text), lines), plain);
  EXPECT_EQ(read("a.txt.zst", zstd(text), lines), plain);
  const size_t half = text.find('\n', text.size() / 2) + 1;
  EXPECT_EQ(read("b.gz", gzip(text.substr(0, half)) + gzip(text.substr(half)) + std::string(9, '\0'), lines),
            plain);
  EXPECT_EQ(read("b.zst", zstd(text.substr(0, half)) + zstd(text.substr(half)), lines), plain);
  EXPECT_EQ(read("a.jsonl.gz", gzip("{\"text\": \"x\"}\n")), (Strings{"x"}));
  EXPECT_EQ(read("a.jsonl.zst", zstd("{\"text\": \"x\"}\n")), (Strings{"x"}));
}

TEST_F(TextReaderTest, CutOffAndDamagedFilesAreNamed) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i * 7919) + "\n";
  for (const auto& [name, bytes] : {std::pair{"a.gz", gzip(text)}, std::pair{"a.zst", zstd(text)}}) {
    const std::string cut = error_of([&] { read(name, bytes.substr(0, bytes.size() / 2)); });
    EXPECT_TRUE(contains(cut, name) && contains(cut, "cut off")) << cut;
    EXPECT_TRUE(contains(error_of([&] { read(name, bytes.substr(0, bytes.size() - 1)); }), "cut off"));
    std::string damaged = bytes;
    for (size_t i = 40; i < 60; ++i) damaged[i] ^= 0x5a;
    const std::string what = error_of([&] { read(name, damaged); });
    EXPECT_TRUE(contains(what, name) && contains(what, "damaged")) << what;
    EXPECT_TRUE(contains(error_of([&] { read(name, "plain text"); }), "does not begin as"));
  }
  EXPECT_TRUE(contains(error_of([&] { TextReader((dir_ / "none").string(), {}); }), "No such file"));
  EXPECT_TRUE(contains(error_of([&] { TextReader(dir_.path().string(), {}); }), "is a directory"));
}

TEST_F(TextReaderTest, MalformedUtf8NamesTheLine) {
  const std::string text =
      "fine\n\nalso\nfa\xe7"
      "ade\nend";
  const std::string what = error_of([&] { read("a.txt", text, {.documents = Documents::paragraph}); });
  EXPECT_TRUE(contains(what, "a.txt:4 ") && contains(what, "0xe7") && contains(what, "windows-1252") &&
              contains(what, "--skip-bad"))
      << what;
  EXPECT_EQ(read("a.txt", text, {.documents = Documents::paragraph, .bad = TextOptions::Bad::skip}),
            (Strings{"fine"}));
  EXPECT_EQ(skipped_, 1);
  EXPECT_TRUE(contains(first_skipped_, "a.txt:4"));
  EXPECT_EQ(
      read("a.txt", text, {.documents = Documents::line, .encoding = TextOptions::Encoding::windows1252})[2],
      "fa\xc3\xa7"
      "ade");
  EXPECT_EQ(read("a.txt", "\x92\x80", {.encoding = TextOptions::Encoding::windows1252})[0],
            "\xe2\x80\x99\xe2\x82\xac");
  EXPECT_TRUE(contains(error_of([&] { read("a.txt", "x\n--\ny\n\xff", {.separator = "--"}); }), "a.txt:4 "));
}

TEST_F(TextReaderTest, MalformedJsonLinesNameTheLine) {
  const std::string lines =
      "{\"text\": \"a\"}\n{\"text\": 3}\n{\"text\": \"b\"\n{\"other\": \"c\"}\n[1]\n{\"text\": "
      "\"\xff\"}\n{\"text\": \"d\"}\n";
  const std::string what = error_of([&] { read("a.jsonl", lines); });
  EXPECT_TRUE(contains(what, "a.jsonl:2 ") && contains(what, "`text`")) << what;
  EXPECT_TRUE(contains(error_of([&] { read("a.jsonl", "\n{\"text\": \"a\"}\n{\n"); }),
                       "a.jsonl:3 is not valid JSON"));
  EXPECT_EQ(read("a.jsonl", lines, {.bad = TextOptions::Bad::skip}), (Strings{"a", "d"}));
  EXPECT_EQ(skipped_, 5);
}

TEST_F(TextReaderTest, FuzzedFilesNeverCrash) {
  const std::string text = "One\n  a\n\nTwo \xc3\xa7\n",
                    json = "{\"text\": \"a\\u00e7\", \"n\": [1, {}]}\n{\"text\": \"b\"}\n";
  const auto count = test::fuzz(
      {text, json, gzip(text), zstd(json), gzip(json) + gzip(text)},
      {"\n\n", "\"text\"", "\x1f\x8b", "\x28\xb5\x2f\xfd", "\\ud800", "[[[[", "\xff"},
      [&](const std::string& bytes) {
        const std::string path = (dir_ / "fuzzed").string();
        spill(path, bytes);
        for (const auto format : {TextOptions::Format::text, TextOptions::Format::jsonl}) {
          TextReader reader(path,
                            {.format = format, .documents = Documents::entry, .bad = TextOptions::Bad::skip});
          for (std::string document; reader.next(document);) {
            ASSERT_FALSE(document.empty());
            ASSERT_FALSE(find_malformed_utf8(document).has_value());
          }
        }
      });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

}  // namespace
}  // namespace osprey
