#include "framework/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

std::string image(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

SafetensorsHeader parse(const std::string& file) {
  // An allocation of exactly this size, so that a sanitizer sees any read beyond it.
  const std::vector<std::byte> exact(reinterpret_cast<const std::byte*>(file.data()),
                                     reinterpret_cast<const std::byte*>(file.data()) + file.size());
  return parse_safetensors("x.safetensors", exact);
}

std::string refusal(const std::string& file) {
  try {
    parse(file);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

/// Expects a refusal that names the file and says `part`.
void refused(const std::string& file, const std::string& part) {
  const std::string message = refusal(file);
  EXPECT_NE(message.find("x.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

void put(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string get(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::span<const std::byte> as_bytes_of(const auto& v) { return std::as_bytes(std::span(v)); }

const std::string two_tensors =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
    R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}})";

TEST(Safetensors, TheGoldenFileOfTheFormatIsWrittenByteForByte) {
  TempDir dir;
  SafetensorsWriter writer(dir / "a", {{"a", StoredType::f32, {2}, 0}}, {});
  const std::vector<float> values = {1, 2};
  writer.write("a", as_bytes_of(values));
  const FileRecord record = writer.finish();
  std::string expected(8, '\0');
  expected[0] = 56;
  expected += R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  )";
  expected += std::string("\0\0\x80\x3f\0\0\0\x40", 8);
  EXPECT_EQ(get(dir / "a"), expected);
  EXPECT_EQ(record.size_bytes, 72);
  EXPECT_EQ(record, hash_file(dir / "a"));
}

TEST(Safetensors, WhatIsWrittenIsReadWithEveryType) {
  TempDir dir;
  const std::vector<int64_t> i64 = {-5, int64_t{1} << 60};
  const std::vector<float> f32 = {1.5f, -0.0f, 3e38f};
  const std::vector<int32_t> i32 = {-7};
  const std::vector<bf16> b16 = {to_bf16(0.1f), to_bf16(-2.0f)};
  const std::vector<uint16_t> f16 = {0x3c00, 0xc000, 0x0001, 0x7c00, 0x03ff, 0x3555};
  const std::vector<uint8_t> u8 = {1, 2, 255};
  SafetensorsWriter writer(dir / "m",
                           {{"u8", StoredType::u8, {3}, 0},
                            {"f16", StoredType::f16, {2, 3}, 0},
                            {"b16", StoredType::bf16, {1, 2}, 0},
                            {"i32", StoredType::i32, {}, 0},
                            {"f32", StoredType::f32, {3}, 0},
                            {"empty", StoredType::f32, {0, 4}, 0},
                            {"i64", StoredType::i64, {2}, 0}},
                           {{"format", "pt"}, {"quote\"", "line\nbreak"}});
  std::vector<std::string> order;
  for (const auto& t : writer.order()) order.push_back(t.name);
  EXPECT_EQ(order, (std::vector<std::string>{"i64", "empty", "f32", "i32", "b16", "f16", "u8"}));
  writer.write("i64", as_bytes_of(i64));
  writer.write("f32", as_bytes_of(f32).first(5));  // in two parts
  writer.write("f32", as_bytes_of(f32).subspan(5));
  writer.write("i32", as_bytes_of(i32));
  writer.write("b16", as_bytes_of(b16));
  writer.write("f16", as_bytes_of(f16));
  writer.write("u8", as_bytes_of(u8));
  writer.finish();

  const SafetensorsFile file(dir / "m");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().at("quote\""), "line\nbreak");
  ASSERT_NE(file.find("i64"), nullptr);
  EXPECT_EQ(0, std::memcmp(file.bytes(*file.find("i64")).data(), i64.data(), 16));
  EXPECT_EQ(0, std::memcmp(file.bytes(*file.find("u8")).data(), u8.data(), 3));
  EXPECT_EQ(file.find("nothing"), nullptr);
  EXPECT_EQ(file.find("f16")->as_shape(), (Shape{2, 3}));
  EXPECT_EQ(file.find("i32")->as_shape().rank, 0);

  std::vector<float> out(6);
  file.read(*file.find("f16"), 0, make_tensor(out.data(), {6}, DType::f32));
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], -2.0f);
  EXPECT_EQ(out[2], 0x1p-24f);
  EXPECT_TRUE(std::isinf(out[3]));
  EXPECT_EQ(out[4], 1023 * 0x1p-24f);
  EXPECT_FLOAT_EQ(out[5], 0.33325195f);
  file.read(*file.find("b16"), 1, make_tensor(out.data(), {1}, DType::f32));
  EXPECT_EQ(out[0], -2.0f);
  std::vector<bf16> narrow(3);
  file.read(*file.find("f32"), 0, make_tensor(narrow.data(), {3}, DType::bf16));
  EXPECT_EQ(to_float(narrow[0]), 1.5f);
  EXPECT_THROW(file.read(*file.find("f32"), 2, make_tensor(out.data(), {2}, DType::f32)), Error);
  EXPECT_THROW(file.read(*file.find("f32"), -1, make_tensor(out.data(), {1}, DType::f32)), Error);
  EXPECT_THROW(file.read(*file.find("i64"), 0, make_tensor(out.data(), {1}, DType::f32)), Error);
}

TEST(Safetensors, TheBytesDoNotDependOnTheOrderInWhichTensorsAreDeclared) {
  TempDir dir;
  const std::vector<float> a = {1}, b = {2};
  for (const char* name : {"1", "2"}) {
    std::vector<StoredTensor> tensors = {{"a", StoredType::f32, {1}, 0}, {"b", StoredType::f32, {1}, 0}};
    if (*name == '2') std::swap(tensors[0], tensors[1]);
    SafetensorsWriter writer(dir / name, tensors, {{"format", "pt"}});
    writer.write("a", as_bytes_of(a));
    writer.write("b", as_bytes_of(b));
    writer.finish();
  }
  EXPECT_EQ(get(dir / "1"), get(dir / "2"));
}

TEST(Safetensors, TheWriterRefusesWrongTurnsAndSizes) {
  TempDir dir;
  const std::vector<float> v = {1, 2, 3};
  EXPECT_THROW(
      SafetensorsWriter(dir / "twice", {{"a", StoredType::f32, {1}, 0}, {"a", StoredType::u8, {1}, 0}}, {}),
      Error);
  const std::vector<StoredTensor> two = {{"a", StoredType::f32, {2}, 0}, {"b", StoredType::f32, {1}, 0}};
  {
    SafetensorsWriter writer(dir / "1", two, {});
    EXPECT_THROW(writer.write("b", as_bytes_of(v).first(4)), Error);
    EXPECT_THROW(writer.write("a", as_bytes_of(v)), Error);
  }
  {
    SafetensorsWriter writer(dir / "2", two, {});
    writer.write("a", as_bytes_of(v).first(8));
    EXPECT_THROW(writer.finish(), Error);
  }
  EXPECT_THROW(SafetensorsWriter(dir / "1", two, {}), Error) << "overwrote a file";
}

TEST(Safetensors, AValidFileIsAcceptedAndItsTensorsComeByOffset) {
  const auto header = parse(image(two_tensors, std::string(20, 'x')));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[1].name, "b");
  EXPECT_EQ(header.tensors[1].offset_bytes, 8);
  EXPECT_EQ(header.data_begin_bytes, static_cast<int64_t>(8 + two_tensors.size()));
  EXPECT_NO_THROW(parse(image("{}", "")));
  EXPECT_NO_THROW(parse(image("{}      ", "")));
}

TEST(Safetensors, EveryLieOfTheHeaderIsRefusedByName) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                      size_t data = 8) {
    return image(
        R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
        std::string(data, 'x'));
  };
  ASSERT_EQ(refusal(one("F32", "[2]", "[0,8]")), "accepted");
  refused("", "truncated");
  refused("1234567", "truncated");
  refused(std::string(8, '\xff') + "{}", "no safetensors file");
  refused(std::string("\x40\0\0\0\0\0\0\0{}", 10), "truncated");
  refused(image("[]", ""), "does not start with '{'");
  refused(image("{", ""), "does not start");
  refused(image("{\"a", ""), "not valid JSON");
  refused(image("{}{}", ""), "not valid JSON");
  refused(image(std::string("{}\0\0", 4), ""), "not valid JSON");
  refused(image("{\"\xff\":1}", ""), "not valid JSON");
  refused(one("F33", "[2]", "[0,8]"), "dtype 'F33'");
  refused(one("F32", "[3]", "[0,8]"), "make 12 bytes");
  refused(one("F32", "[-2]", "[0,8]"), "negative");
  refused(one("F32", "[2.0]", "[0,8]"), "fraction");
  refused(one("F32", "[2e0]", "[0,8]"), "fraction");
  refused(one("F32", "[99999999999999999999999]", "[0,8]"), "huge");
  refused(one("F32", "[18446744073709551615]", "[0,8]"), "larger");
  refused(one("F32", "[4611686018427387904,4]", "[0,8]"), "larger");
  refused(one("F32", "[9007199254740992,9007199254740992]", "[0,8]"), "64 bits");
  refused(one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]", "[0,8]"), "more than 16 dimensions");
  refused(one("F32", "[[2]]", "[0,8]"), "a list");
  refused(one("F32", "[\"2\"]", "[0,8]"), "a string");
  refused(one("F32", "null", "[0,8]"), "null");
  refused(one("F32", "2", "[0,8]"), "a number");
  refused(one("F32", "[2]", "[8,0]"), "backwards");
  refused(one("F32", "[2]", "[0,8,8]"), "two numbers");
  refused(one("F32", "[2]", "[0]"), "two numbers");
  refused(one("F32", "[2]", "[]"), "two numbers");
  refused(one("F32", "[2]", "[0,8]", 4), "truncated");
  refused(one("F32", "[2]", "[0,8]", 12), "4 bytes behind the last tensor");
  refused(one("F32", "[1]", "[4,8]"), "4 bytes before");
  refused(image(R"({"a":{"dtype":"F32","shape":[2]}})", ""), "must have dtype, shape and data_offsets");
  refused(image(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678"),
          "'dtype' twice");
  refused(image(R"({"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})", "12345678"),
          "'shape' twice");
  refused(image(R"({"a":{"type":"F32"}})", ""), "unknown key 'type'");
  refused(image(R"({"a":{"dtype":{}}})", ""), "an object");
  refused(image(R"({"a":3})", ""), "a number");
  refused(image(R"({"a":[]})", ""), "a list");
  refused(image(R"({"__metadata__":{"a":1}})", ""), "must be a string");
  refused(image(R"({"__metadata__":{"a":"1","a":"2"}})", ""), "key 'a' twice");
  refused(image(R"({"__metadata__":{},"__metadata__":{}})", ""), "twice");
  refused(
      image(
          R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          "12345678"),
      "tensor 'a' twice");
  refused(
      image(
          R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          "12345678"),
      "inside the tensor before it");
  // Many names for the same bytes: the blow-up of a small file.
  refused(
      image(
          R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
          "12345678"),
      "inside the tensor before it");
  refused(
      image(
          R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          "12345678"),
      "2 bytes before tensor 'b'");
}

TEST(Safetensors, FilesThatAreNotThereOrNoFilesAreNamed) {
  TempDir dir;
  for (const auto& path : {dir / "missing", dir.path()}) try {
      SafetensorsFile file(path);
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(path.string()), std::string::npos) << e.what();
    }
  put(dir / "empty", "");
  EXPECT_THROW(SafetensorsFile(dir / "empty"), Error);
}

TEST(Safetensors, AShardedModelIsReadThroughItsIndex) {
  TempDir dir;
  const std::vector<float> a = {1, 2}, b = {3};
  for (auto [name, tensor, values] : {std::tuple{"m-1.safetensors", "a", a}, {"m-2.safetensors", "b", b}}) {
    SafetensorsWriter writer(dir / name,
                             {{tensor, StoredType::f32, {static_cast<int64_t>(values.size())}, 0}}, {});
    writer.write(tensor, as_bytes_of(values));
    writer.finish();
  }
  const auto with_map = [&](const std::string& map) {
    put(dir / "model.safetensors.index.json", R"({"metadata":{"total_size":12},"weight_map":)" + map + "}");
    try {
      const SafetensorsModel model(dir.path());
      float value = 0;
      model.read("b", make_tensor(&value, {1}, DType::f32));
      return value == 3 && model.names() == std::vector<std::string>{"a", "b"} ? std::string("read")
                                                                               : "wrong";
    } catch (const Error& e) {
      return std::string(e.what());
    }
  };
  const auto says = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find("model.safetensors.index.json"), std::string::npos) << message;
  };
  EXPECT_EQ(with_map(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})"), "read");
  says(with_map(R"({"a":"../m-1.safetensors","b":"m-2.safetensors"})"), "plain name");
  says(with_map(R"({"a":"/etc/passwd","b":"m-2.safetensors"})"), "plain name");
  says(with_map(R"({"a":"..","b":"m-2.safetensors"})"), "plain name");
  says(with_map(R"({"a":"m-1.safetensors\u0000","b":"m-2.safetensors"})"), "plain name");
  says(with_map(R"({"a":"m-2.safetensors","b":"m-2.safetensors"})"), "where it is not");
  says(with_map(R"({"b":"m-2.safetensors","b":"m-2.safetensors"})"), "twice");
  EXPECT_NE(with_map(R"({"a":"m-1.safetensors"})").find("has no tensor 'b'"), std::string::npos);
  says(with_map(R"({"a":1})"), "not a string");
  says(with_map("3"), "weight_map");
  says(with_map("[[[[1]]]]"), "deeper");
  put(dir / "more.safetensors",
      image(
          R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"c":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}})",
          "12345"));
  says(with_map(R"({"a":"m-1.safetensors","b":"more.safetensors"})"), "does not list tensor 'c'");
  EXPECT_THROW(SafetensorsModel(dir.path() / "nowhere"), Error);
}

TEST(Safetensors, MutatedFilesAreReadOrRefusedButNeverCrash) {
  const std::vector<std::string> seeds = {image(two_tensors, std::string(20, 'x')), image("{}", ""),
                                          image(R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
                                                R"("b":{"dtype":"I64","shape":[0,3],"data_offsets":[1,1]}})",
                                                "x")};
  const std::vector<std::string> words = {"[",
                                          "]",
                                          "{",
                                          "}",
                                          ",",
                                          ":",
                                          "\"",
                                          "-1",
                                          "1e9",
                                          "0",
                                          "18446744073709551615",
                                          "9007199254740993",
                                          "null",
                                          "true",
                                          "\"dtype\":",
                                          "\"shape\":",
                                          "BF16",
                                          "I64",
                                          "\"data_offsets\":",
                                          "\"__metadata__\":",
                                          "\\u0000",
                                          std::string(8, '\xff'),
                                          std::string("\x02\0\0\0\0\0\0\0", 8),
                                          std::string(300, '[')};
  const auto count = test::fuzz(seeds, words, [](const std::string& input) {
    const auto header = parse(input);
    uint64_t end = 0;
    for (const auto& t : header.tensors) end += static_cast<uint64_t>(t.bytes());
    // An accepted file describes exactly the bytes that are there.
    EXPECT_EQ(end + static_cast<uint64_t>(header.data_begin_bytes), input.size());
  });
  EXPECT_GT(count.refused, 1000);
  EXPECT_GT(count.accepted, 100);
}

}  // namespace
}  // namespace osprey
